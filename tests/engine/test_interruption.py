"""SIGTERM and Ctrl-C: the run ends after its iteration, with a checkpoint to go on from."""

import json
import os
import signal
import threading

import pytest
import torch

from helpers.tiny_run import FOCAL, load, metrics, run, same, trainer, write_config
from sampling_free.engine.hooks import ResumableWriter
from sampling_free.engine.trainer import LazyTrainer
from sampling_free.utils.errors import BadInput
from sampling_free.utils.signals import SIGNALS, Interrupted, Interruption, passed_on

LONG = ["train.max_iter=9", "train.log_period=2", "train.eval_period=4"]
BEST = ["train.best_metric=bbox/AP"]


@pytest.fixture(autouse=True)
def listening():
    """As in a shell's foreground; the tests themselves may have been started in its background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


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


class Signalled(LazyTrainer):
    """Gets a signal in the step of an iteration, in its evaluation, or before the first one."""

    where, at, number = "step", 5, signal.SIGTERM

    def run_step(self):
        if (self.where, self.at) == ("step", self.iter):
            send(self.number)
        super().run_step()

    def test(self, cfg, model):
        if (self.where, self.at) == ("evaluation", self.iter):
            send(self.number)
            raise AssertionError("not reached")
        return LazyTrainer.test(cfg, model)

    def before_step(self):
        # The hooks of the iteration before are done, and its checkpoint is written.
        if (self.where, self.at) == ("between", self.iter):
            send(self.number)
        super().before_step()


@pytest.fixture
def signalled(monkeypatch):
    """Trains until a signal comes; returns the trainer's exception."""

    def call(config, *overrides, **where):
        for key, value in where.items():
            monkeypatch.setattr(Signalled, key, value)
        with monkeypatch.context() as m, pytest.raises(Interrupted) as e:
            m.setattr("helpers.tiny_run.LazyTrainer", Signalled)
            run(config, *overrides)
        return e.value

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders of uninterrupted runs, with a guide that has a state, and of focal loss."""
    folders = {}
    for name, extra in (("frozen", "model.guide = 'frozen'\n"), ("focal", FOCAL)):
        folders[name] = tmp_path_factory.mktemp(name)
        run(write_config(folders[name], extra), *LONG, *BEST)
    return folders


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


class TestTheHooksOfTheCheckpointsIteration:
    """Detectron2 writes the checkpoint first, so that a failing evaluation costs no training."""

    @pytest.mark.parametrize("after", ["save", "evaluation", "best", "write"])
    def test_what_a_killed_run_had_not_done_is_done(self, whole, tmp_path, after):
        config, options = write_config(tmp_path, "model.guide = 'frozen'\n"), [*LONG, *BEST]
        made = trainer(config, *options, "train.checkpointer.period=4")
        kinds = [type(hook).__name__ for hook in made._hooks]
        names = ["KeepingCheckpointer", "EvalHook", "StatefulBestCheckpointer", "ResumableWriter"]
        last = made._hooks[
            kinds.index(dict(zip(["save", "evaluation", "best", "write"], names))[after])
        ]
        step = last.after_step

        def killed():
            step()
            if made.iter == 3:
                os._exit(9)

        last.after_step = killed
        killed_in(made)
        resumed = run(config, *options, "train.checkpointer.period=4", resume=True)
        assert resumed.start_iter == 4
        a, b = (load(x / "out" / "model_final.pth") for x in (whole["frozen"], tmp_path))
        assert same(a, b)
        assert same(metrics(whole["frozen"] / "out"), metrics(tmp_path / "out"))

    def test_what_was_evaluated_after_the_checkpoint_is_in_the_next(self, tmp_path):
        # The line of metrics.json is written; the checkpoint was written before it.
        config = write_config(tmp_path)
        whole, killed = (f"train.output_dir={tmp_path / x}" for x in ("whole", "killed"))
        options = ["train.max_iter=8", "train.eval_period=3", "train.checkpointer.period=6"]
        run(config, whole, *options)
        made = trainer(config, killed, *options)
        made.before_step = lambda: os._exit(9) if made.iter == 6 else LazyTrainer.before_step(made)
        killed_in(made)
        run(config, killed, *options, resume=True)
        a, b = (load(tmp_path / x / "model_final.pth") for x in ("whole", "killed"))
        assert same(a, b)

    def test_a_torn_best_model_is_written_again(self, tmp_path):
        config = write_config(tmp_path)
        options = ["train.max_iter=9", "train.eval_period=3", *BEST]
        made = trainer(config, *options)
        made.before_step = lambda: os._exit(9) if made.iter == 3 else LazyTrainer.before_step(made)
        killed_in(made)
        path = tmp_path / "out" / "model_best.pth"
        assert (tmp_path / "out" / "last_checkpoint").read_text() == path.name
        best = load(path)
        path.write_bytes(path.read_bytes()[:-300])
        killed_behind("model_0000005", trainer(config, *options, resume=True))
        assert same(best, load(path))

    def test_the_final_checkpoint_is_written(self, tmp_path):
        config = write_config(tmp_path)
        whole, killed = (f"train.output_dir={tmp_path / x}" for x in ("whole", "killed"))
        run(config, whole)
        killed_behind("model_0000005", trainer(config, killed))
        assert not (tmp_path / "killed" / "model_final.pth").exists()
        for _ in range(2):  # once more it changes nothing
            assert run(config, killed, resume=True).start_iter == 6
            a, b = (load(tmp_path / x / "model_final.pth") for x in ("whole", "killed"))
            assert same(a, b)

    def test_of_a_trainer_that_writes_by_other_hooks(self, tmp_path, monkeypatch):
        build = LazyTrainer.build_hooks
        monkeypatch.setattr(
            LazyTrainer,
            "build_hooks",
            lambda made: [hook for hook in build(made) if not isinstance(hook, ResumableWriter)],
        )
        config = write_config(tmp_path)
        killed_behind("model_0000002", trainer(config))
        assert run(config, resume=True).start_iter == 3

    @pytest.mark.parametrize("at", [1, 5])
    def test_no_line_of_the_metrics_is_there_twice(self, tmp_path, at):
        # Killed before the first checkpoint; or after an evaluation amid two turns of the writer.
        config = write_config(tmp_path)
        options = ["train.max_iter=8", "train.eval_period=4", "train.log_period=5"]
        options = options if at == 5 else ["train.max_iter=8"]
        made = trainer(config, *options)
        made.run_step = lambda: os._exit(9) if made.iter == at else LazyTrainer.run_step(made)
        killed_in(made)
        lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
        assert len(lines) == (2 if at == 5 else 1)
        for _ in range(2):  # the last evaluation is done again
            run(config, *options, resume=True)
            lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
            iterations = [json.loads(x)["iteration"] for x in lines]
            assert sorted(iterations) == ([3, 4, 7, 8] if at == 5 else list(range(9)))


def killed_behind(name, made):
    """Trains in another process, killed when this checkpoint is written."""
    save = made.checkpointer.save

    def last_save(saved, **kwargs):
        save(saved, **kwargs)
        if saved == name:
            os._exit(9)

    made.checkpointer.save = last_save
    killed_in(made)


def killed_in(made):
    """Trains in another process, which is to end by ``os._exit(9)``."""
    child = os.fork()
    if child == 0:
        os.close(1), os.close(2)
        made.train()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


class TestAnotherLength:
    def test_no_more_than_there_are_is_a_final_checkpoint(self, tmp_path, signalled):
        config = write_config(tmp_path)
        signalled(config, *LONG, where="step", at=5)
        run(config, "train.max_iter=6", resume=True)
        saved = load(tmp_path / "out" / "model_final.pth")
        assert saved["iteration"] == 5 and saved["trainer"]["max_iter"] == 6

    def test_fewer_iterations_than_there_are_is_refused(self, tmp_path):
        config = write_config(tmp_path)
        run(config, "train.max_iter=6")
        with pytest.raises(BadInput, match="^train.max_iter=5: .*has 6 iterations.*--eval-only"):
            trainer(config, "train.max_iter=5", resume=True)

    def test_more_go_on_after_the_best_evaluation_too(self, tmp_path, monkeypatch):
        # Detectron2 numbers the model of the last evaluation as if one more step had been done.
        config = write_config(tmp_path)
        run(config, "train.max_iter=4", *BEST)
        assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_best.pth"
        longer = trainer(config, "train.max_iter=7", *BEST, resume=True)
        assert longer.start_iter == 4
        longer.train()
        rows = metrics(tmp_path / "out")
        assert [i for i in rows if "total_loss" in rows[i]] == list(range(7))
        assert "bbox/AP" in rows[4]

    def test_a_best_model_of_the_version_before_has_one_iteration_less_than_it_says(self, tmp_path):
        config = write_config(tmp_path)
        run(config, "train.max_iter=4", *BEST)
        path = tmp_path / "out" / "model_best.pth"
        old = load(path)
        old["trainer"]["iteration"] = 4
        for key in ("max_iter", "is_in_hooks", "unsmoothed"):
            del old["trainer"][key]
        torch.save(old, path)
        assert trainer(config, "train.max_iter=4", *BEST, resume=True).start_iter == 4
        assert trainer(config, "train.max_iter=7", *BEST, resume=True).start_iter == 4


def test_max_to_keep_holds_over_interruptions(tmp_path, signalled):
    config = write_config(tmp_path)
    keep = ["train.max_iter=12", "train.checkpointer.period=2", "train.checkpointer.max_to_keep=2"]
    signalled(config, *keep, where="step", at=6)
    run(config, *keep, resume=True)
    names = sorted(p.name for p in (tmp_path / "out").glob("model_0*.pth"))
    assert names == ["model_0000009.pth", "model_0000011.pth"]


class TestTheSignalOfAnotherProcess:
    """All processes hear of it in the step, and do the same from there on."""

    @staticmethod
    def stopped(config, at):
        made = trainer(config, *LONG)
        made._trainer.wants_to_stop = lambda: made.iter == at
        with pytest.raises(Interrupted) as e:
            made.train()
        assert e.value.code == 143
        return load(made.checkpointer.get_checkpoint_file())["trainer"]

    def test_no_line_is_written_out_of_turn(self, tmp_path):
        saved = self.stopped(write_config(tmp_path), at=4)
        assert saved["iteration"] == 4 and not saved["is_in_hooks"]
        assert list(metrics(tmp_path / "out")) == [1, 3]

    @pytest.mark.parametrize("at, before", [(3, 0), (8, 2)])
    def test_an_evaluation_is_not_begun(self, tmp_path, monkeypatch, at, before):
        calls = []
        build = LazyTrainer.build_evaluator
        monkeypatch.setattr(LazyTrainer, "build_evaluator", lambda x: calls.append(1) or build(x))
        before += 1  # the one that is dropped before the training
        state = self.stopped(write_config(tmp_path), at=at)
        assert state["iteration"] == at and state["is_in_hooks"]
        assert len(calls) == before


def test_a_signal_amid_a_checkpoint_is_told_as_what_it_is(tmp_path, monkeypatch):
    # Of the best model after the last evaluation; PyTorch makes a RuntimeError of it.
    write = torch.save

    class Signalling:
        def __init__(self, file):
            self.file, self.left = file, 5

        def write(self, data):
            self.left -= 1
            if self.left == 0 and "model_best" in self.file.name:
                send()
            return self.file.write(data)

        def flush(self):
            self.file.flush()

    monkeypatch.setattr(torch, "save", lambda data, file: write(data, Signalling(file)))
    made = trainer(write_config(tmp_path), "train.max_iter=2", *BEST)
    with pytest.raises(Interrupted, match="SIGTERM; --resume goes on from .*model_final.pth"):
        made.train()
    assert not list((tmp_path / "out").glob("*unfinished*"))
