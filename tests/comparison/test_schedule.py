"""Runs side by side, their locks and processes, and what they leave."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.comparisons import STUB, make_stage, planned, side_by_side
from helpers.stub_train_net import HANGS
from sampling_free.comparison import outcome
from sampling_free.comparison.lock import Lock
from sampling_free.comparison.precision_recalls import interpolated
from sampling_free.comparison.store import read_json, result_of
from sampling_free.comparison.subprocesses import Processes
from sampling_free.evaluation.matching import Matches
from sampling_free.utils.errors import BadInput
from sampling_free.utils.files import write_json


@pytest.fixture
def stage(tmp_path, monkeypatch):
    return make_stage(tmp_path, monkeypatch)


class TestSideBySide:
    def test_a_full_disk_fails_the_run_and_not_the_others(self, stage, monkeypatch, capsys):
        def write(path, value, indent=1):
            if path.endswith("result.json") and value["seed"] == 0:
                raise OSError(28, "No space left on device")
            write_json(path, value, indent)

        monkeypatch.setattr("sampling_free.comparison.execute.write_json", write)
        plans, work = planned(stage, (0, 1)), side_by_side()

        def full():
            raise BadInput("r.json: No space left on device")

        assert [r["seed"] for r in work.run(plans, "", full)] == [1]
        (line,) = work.failures.values()
        assert "config.py seed 0: " in line and "No space left" in line
        assert line.endswith(f"see {plans[0].folder}")
        assert not list(stage.folder.glob("runs/*/lock.json"))
        assert "warning: r.json: No space" in capsys.readouterr().out

    def test_jobs_run_at_the_same_time_and_no_more_than_so_many(self, stage, monkeypatch):
        monkeypatch.setenv("LEAST_CALLS", "2")  # the first waits for the second
        plans = planned(stage, range(4))
        records = side_by_side(jobs=2).run(plans, "")
        assert [r["seed"] for r in records] == [0, 1, 2, 3]
        spans = [read_json(f"{one.folder}/times.json") for one in plans]
        at_once = [sum(a <= start < b for a, b in spans) for start, _ in spans]
        assert max(at_once) == 2
        assert records[0]["jobs"] == 2

    def test_two_comparisons_do_no_run_twice(self, stage, monkeypatch):
        monkeypatch.setenv("LEAST_CALLS", "2")  # which the other comparison makes
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        # Processes: two threads would patch Python's import at once, as reading a config does.
        words = ["--configs", stage.config, "--folder", f"{stage.folder}/runs"]
        words += ["--seeds", "0", "1", "2", "3", "--output"]
        code = (
            "import sys; import compare; compare.TRAIN_NET = sys.argv[1];"
            "sys.exit(len(compare.compare(compare.parse_args(sys.argv[2:]), poll=0.05)))"
        )
        outputs = [f"{stage.folder}/{name}.json" for name in "ab"]
        both = [
            subprocess.Popen([sys.executable, "-c", code, STUB, *words, path]) for path in outputs
        ]
        assert [one.wait() for one in both] == [0, 0]
        assert len(stage.calls()) == 4
        assert [len(read_json(path)["runs"]) for path in outputs] == [4, 4]

    def test_a_run_that_is_locked_is_waited_for(self, stage, monkeypatch, capsys):
        first, second = plans = planned(stage, (0, 1))
        lock = Lock(first.folder)
        assert lock.take()
        waited = []

        def sleep(seconds):
            waited.append(seconds)
            if len(waited) == 3:
                lock.release()

        monkeypatch.setattr("sampling_free.comparison.schedule.time.sleep", sleep)
        records = side_by_side().run(plans, "")
        assert [r["seed"] for r in records] == [0, 1]
        order = [w for call in stage.calls() for w in call if w.startswith("train.seed")]
        assert order == ["train.seed=1", "train.seed=0"], "what is free goes first"
        assert f"waits for process {os.getpid()} on " in capsys.readouterr().out
        assert waited == [0.05] * 3

    def test_an_interrupt_ends_the_processes_and_keeps_what_is_done(self, stage):
        plans = planned(stage, (0, HANGS, 1))

        def interrupt():
            raise KeyboardInterrupt

        work = side_by_side(jobs=2)
        with pytest.raises(KeyboardInterrupt):
            work.run(plans, "", interrupt)
        assert result_of(plans[0])["bbox/AP"] == 40.0 and result_of(plans[1]) is None
        assert not list(stage.folder.glob("runs/*/lock.json"))
        for line in (stage.folder / "calls").read_text().splitlines():
            with pytest.raises(ProcessLookupError):
                os.kill(json.loads(line)["pid"], 0)


class TestLock:
    def test_it_is_taken_once(self, tmp_path):
        folder = str(tmp_path / "run")
        first, second = Lock(folder), Lock(folder)
        assert first.take() and not first.take() and not second.take()
        assert second.holder() == f"process {os.getpid()} on {socket.gethostname()}"
        first.release()
        assert os.listdir(folder) == [] and second.take() and not first.take()

    def test_a_file_that_was_removed_meanwhile_is_no_lock(self, tmp_path, monkeypatch):
        first, second, third = (Lock(str(tmp_path)) for _ in range(3))
        assert first.take()
        flock = fcntl.flock

        def late(descriptor, how):
            monkeypatch.setattr(fcntl, "flock", flock)
            first.release()
            assert third.take()
            flock(descriptor, how)  # of the file that is no longer there

        monkeypatch.setattr(fcntl, "flock", late)
        assert not second.take()

    def test_that_of_a_killed_comparison_holds_while_its_run_lives(self, tmp_path):
        code = (
            "import os, sys; from sampling_free.comparison.lock import Lock;"
            "from sampling_free.comparison.subprocesses import Processes;"
            "place, out, pipe = sys.argv[1:]; lock = Lock(place); assert lock.take();"
            "code = 'import sys; print(0, flush=True); open(sys.argv[1]).read()';"
            "run = [sys.executable, '-c', code, pipe];"
            "Processes().call(run, out, dict(os.environ), (lock.descriptor,))"
        )
        place, out, pipe = (str(tmp_path / name) for name in ("run", "out", "pipe"))
        os.mkfifo(pipe)
        end = os.open(pipe, os.O_RDWR)
        try:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            words = [sys.executable, "-c", code, place, out, pipe]
            comparison = subprocess.Popen(words, env=environment)
            while not (os.path.exists(out) and Path(out).read_text()):
                assert comparison.poll() is None
            comparison.kill()
            comparison.wait()
            lock = Lock(place)
            assert not lock.take()
        finally:
            os.close(end)  # ends the run
        while not lock.take():
            pass
        lock.release()


class TestProcess:
    def test_the_memory_is_that_of_the_process_itself(self, tmp_path):
        processes, out = Processes(), str(tmp_path / "out")
        # From fresh small processes: the parent's own memory counts until the program starts.
        code = "import sys; x = bytearray(int(sys.argv[1])); print(x[::4096].count(0))"
        words = [sys.executable, "-c", code]
        own = processes.call([*words, "1"], out, dict(os.environ)).peak_memory_mib
        size = 2**20 * (int(own) + 300)
        ended = processes.call([*words, str(size)], out, dict(os.environ))
        assert ended.code == 0
        assert own + 290 < ended.peak_memory_mib < own + 400

    def test_how_it_ended_is_told(self, tmp_path):
        out = str(tmp_path / "out")
        code = "import sys; print('said', file=sys.stderr); sys.exit(3)"
        assert Processes().call([sys.executable, "-c", code], out, dict(os.environ)).code == 3
        assert Path(out).read_text() == "said\n"
        code = "import os; os.kill(os.getpid(), 9)"
        assert Processes().call([sys.executable, "-c", code], out, dict(os.environ)).code == -9


class TestOutcome:
    def test_repeated_iterations_count_once_and_torn_lines_not_at_all(self, tmp_path):
        lines = [{"iteration": i, "total_loss": float(i)} for i in (0, 1, 2)]
        lines.append({"iteration": 1, "total_loss": 10.0})
        lines.append({"iteration": 3, "total_loss": float("nan"), "loss_cls": 1.0, "lr": 1})
        lines.append({"iteration": 4, "lr": 1})
        text = "".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 5, "tot'
        (tmp_path / "metrics.json").write_text(text)
        assert outcome.course(outcome.read_metrics(tmp_path)) == {
            "iteration": [0, 1, 2, 3],
            "loss_cls": [None, None, None, 1.0],
            "total_loss": [0.0, 10.0, 2.0, None],
        }
        assert outcome.read_metrics(tmp_path / "nothing") == []

    def test_the_curves_are_lines_of_the_metrics_at_the_points_and_the_end(self):
        rows = [{"iteration": i, "guide/r": i / 10, "lr": 1} for i in range(19, 500, 20)]
        rows.append({"iteration": 500, "bbox/AP": 3.0})
        curves = outcome.curves(rows)
        assert [x["iterations"] for x in curves] == [20, 40, 100, 200, 400, 500]
        assert curves[1] == {"iterations": 40, "guide/r": 3.9}
        assert outcome.curves([{"iteration": 19, "total_loss": 1.0}]) == []

    def test_without_a_detection_ap_is_0_and_without_objects_of_a_class_unknown(self):
        nan = float("nan")
        found = outcome.scores({"bbox/AP": nan, "bbox/AP50": nan, "bbox/APl": nan, "lr": 1})
        assert found == {"bbox/AP": 0.0, "bbox/AP50": 0.0, "bbox/AP75": 0.0, "bbox/APl": None}
        found = outcome.scores({"bbox/AP": 3.0, "bbox/AP-cat": nan})
        assert found == {"bbox/AP": 3.0, "bbox/AP-cat": None}

    def test_the_interpolated_precision_is_the_best_at_this_recall_or_more(self):
        rng = np.random.default_rng(0)
        scores, is_correct = rng.random(40).round(1), rng.random(40) < 0.5
        found = interpolated(Matches(scores, is_correct, 30))
        points = []
        for threshold in set(scores):
            shown = scores >= threshold
            points.append((is_correct[shown].sum() / 30, is_correct[shown].mean()))
        for i in range(101):
            expected = max((p for r, p in points if r >= i / 100), default=0.0)
            assert found["precision"][i] == pytest.approx(expected, abs=1e-4)
        assert found["recall"] == pytest.approx(np.arange(101) / 100)
