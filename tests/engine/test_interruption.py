"""SIGTERM and Ctrl-C: the run ends after its iteration, with a checkpoint to go on from."""

import signal
import threading

import pytest

from helpers.interruption_cases import BEST, LONG, send
from helpers.tiny_run import FOCAL, load, metrics, run, same, trainer, write_config
from sampling_free.utils.signals import SIGNALS, Interrupted, Interruption, passed_on


@pytest.fixture(autouse=True)
def listening():
    """As in a shell's foreground; the tests themselves may have been started in its background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class TestInterruption:
    @pytest.mark.parametrize("number", SIGNALS)
    def test_the_first_signal_is_noted_and_the_handlers_come_back(self, number):
        before = [signal.getsignal(n) for n in SIGNALS]
        with Interruption() as interruption:
            assert interruption.number is None
            send(number)
            send(signal.SIGTERM)
            assert interruption.number == number
        assert [signal.getsignal(n) for n in SIGNALS] == before

    def test_a_second_ctrl_c_does_what_it_always_does(self):
        with pytest.raises(KeyboardInterrupt) as e, Interruption():
            send(signal.SIGINT)
            send(signal.SIGINT)
        assert type(e.value) is KeyboardInterrupt

    @pytest.mark.parametrize("order", [SIGNALS, SIGNALS[::-1]])
    def test_ctrl_c_may_come_with_a_sigterm(self, order):
        # Of several processes each gets it from the terminal and from the one that waits for them.
        with Interruption() as interruption:
            for number in (*order, signal.SIGTERM):
                send(number)
            assert interruption.number == order[0]

    @pytest.mark.parametrize("number", SIGNALS)
    def test_at_once(self, number):
        interruption = Interruption()
        with interruption:
            with pytest.raises(Interrupted) as e, interruption.at_once():
                with interruption.at_once():
                    pass
                send(number)
                raise AssertionError("not reached")
            assert e.value.code == 128 + number
            with pytest.raises(Interrupted), interruption.at_once():
                raise AssertionError("not reached")

    def test_after_a_block_of_at_once_it_waits_again(self):
        with Interruption() as interruption:
            with interruption.at_once():
                pass
            send()
            assert interruption.number == signal.SIGTERM

    def test_what_is_ignored_stays_ignored(self):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with Interruption() as interruption:
            send(signal.SIGINT)
            assert interruption.number is None

    def test_outside_the_main_thread_nothing_changes(self):
        found = []

        def other():
            with Interruption():
                found.append(signal.getsignal(signal.SIGTERM))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert found == [signal.getsignal(signal.SIGTERM)]

    @pytest.mark.parametrize("number", SIGNALS)
    def test_before_there_are_processes_to_pass_it_on_to(self, number):
        before = [signal.getsignal(n) for n in SIGNALS]
        with pytest.raises(Interrupted, match=f"^interrupted by {number.name}$") as e, passed_on():
            send(number)
            raise AssertionError("not reached")
        assert e.value.code == 128 + number
        assert [signal.getsignal(n) for n in SIGNALS] == before


@pytest.mark.parametrize(
    "where, at, saved",
    [("step", 5, 5), ("step", 7, 7), ("between", 5, 5), ("evaluation", 3, 3), ("evaluation", 7, 7)],
)
@pytest.mark.parametrize("name, extra", [("frozen", "model.guide = 'frozen'\n"), ("focal", FOCAL)])
def test_the_resumed_run_equals_the_uninterrupted_one(
    whole, tmp_path, signalled, name, extra, where, at, saved
):
    config = write_config(tmp_path, extra)
    error = signalled(config, *LONG, *BEST, where=where, at=at)
    path = tmp_path / "out" / f"model_{saved:07d}.pth"
    assert error.code == 143
    assert str(error) == f"interrupted by SIGTERM; --resume goes on from {path}"
    resumed = run(config, *LONG, *BEST, resume=True)
    assert resumed.start_iter == saved + 1
    for file in ("model_final.pth", "model_best.pth"):
        a, b = (load(x / "out" / file) for x in (whole[name], tmp_path))
        assert same(a, b), file
    assert same(metrics(whole[name] / "out"), metrics(tmp_path / "out"))


def test_ctrl_c_is_the_same_but_for_the_exit_code(tmp_path, signalled):
    error = signalled(write_config(tmp_path), *LONG, where="step", at=4, number=signal.SIGINT)
    assert error.code == 130 and str(error).startswith("interrupted by SIGINT; --resume")
    assert load(tmp_path / "out" / "model_0000004.pth")["iteration"] == 4


def test_in_the_last_iteration_the_run_is_over_but_for_its_evaluation(tmp_path, signalled):
    config = write_config(tmp_path)
    error = signalled(config, *LONG, where="step", at=8)
    assert str(error).endswith("out/model_final.pth")
    assert 9 not in metrics(tmp_path / "out")
    assert run(config, *LONG, resume=True).start_iter == 9
    assert "bbox/AP" in metrics(tmp_path / "out")[9]


def test_before_the_first_iteration_there_is_nothing_to_save(tmp_path, monkeypatch):
    made = trainer(write_config(tmp_path), *LONG)
    monkeypatch.setattr(made.prior_init, "before_train", send)
    with pytest.raises(Interrupted, match="^interrupted by SIGTERM$"):
        made.train()
    assert not list((tmp_path / "out").glob("*.pth"))
