"""What the hooks of the checkpoint's iteration had still to do."""

import json
import os

import pytest
import torch

from helpers.interruption_cases import BEST, LONG, send
from helpers.tiny_run import load, metrics, run, same, trainer, write_config
from sampling_free.engine.hooks import ResumableWriter
from sampling_free.engine.trainer import LazyTrainer
from sampling_free.utils.errors import BadInput
from sampling_free.utils.signals import Interrupted


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
