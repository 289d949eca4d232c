"""tools/compare.py: plans, one process a run, what is done stays done, failures stay apart.

The runs are those of stub_train_net.py, which trains nothing; one at the end is real.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_run
from omegaconf import OmegaConf
from stub_train_net import CRASHES, DIVERGES, HANGS
from yaml_files import RETINANET

import compare
from sampling_free.comparison import outcome
from sampling_free.comparison.lock import Lock
from sampling_free.comparison.plan import plan, runs_of_configs, runs_of_variants, with_seeds
from sampling_free.comparison.precision_recalls import curves_of_classes, interpolated
from sampling_free.comparison.process import Processes, Stopped
from sampling_free.comparison.run import Workshop
from sampling_free.comparison.runs import Run, config_digest, is_record_of, slug, split_overrides
from sampling_free.comparison.side_by_side import SideBySide
from sampling_free.comparison.store import Output, read_json, result_of, write_json
from sampling_free.comparison.thresholds import score_thresholds, shared_settings, usual_settings
from sampling_free.config import load_config
from sampling_free.errors import BadInput
from sampling_free.matches import Matches

ROOT = Path(__file__).parents[1]
STUB = str(Path(__file__).parent / "stub_train_net.py")
FULL = "configs/bccd/retinanet_R_18_FPN.py"


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A folder with a tiny config, and the stub in place of train_net.py."""
    monkeypatch.setattr(compare, "TRAIN_NET", STUB)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    (tmp_path / "calls").touch()
    config = tiny_run.write_config(tmp_path)

    def run(*words):
        """Compares; the lines of what failed."""
        base = ["--config-file", config, "--folder", f"{tmp_path}/runs"]
        base = base if "--configs" not in words else base[2:]
        return compare.compare(compare.parse_args([*base, *words]), poll=0.05)

    def calls():
        """The command lines since the last question."""
        lines = [json.loads(x)["words"] for x in (tmp_path / "calls").read_text().splitlines()]
        (tmp_path / "calls").write_text("")
        return lines

    def place(name):
        """The folder of a run, whatever the digest of its config is."""
        (folder,) = (tmp_path / "runs").glob(f"{name}_??????")
        return folder

    def result(name):
        return json.loads((place(name) / "result.json").read_text())

    return SimpleNamespace(
        folder=tmp_path, config=config, run=run, calls=calls, place=place, result=result
    )


def side_by_side(jobs=1, output=None, poll=0.05):
    workshop = Workshop(STUB, 1, jobs, Processes(), None)
    return SideBySide(workshop, Output(output), poll)


def planned(stage, seeds=(0,), **kwargs):
    """Runs of the config as it is."""
    runs = runs_of_configs([stage.config], [None], ["train.max_iter=4"])
    return plan(with_seeds(runs, seeds), f"{stage.folder}/{kwargs.get('folder', 'runs')}")


class TestCommandLine:
    def test_overrides_stand_anywhere_but_behind_an_option(self):
        words = "--variants focal all_samples:model.prior=0.5,model.guide=2 --seeds 0 1 a.b=1"
        others, overrides = compare.without_overrides(words.split())
        assert overrides == ["a.b=1"] and others == words.split()[:-1]
        words = ["x=1", "--folder", "a=b", "y=[1,2]", "--vary", "k=1", "k=2", "--jobs", "2"]
        others, overrides = compare.without_overrides(words)
        assert overrides == ["x=1", "y=[1,2]"]
        assert others == ["--folder", "a=b", "--vary", "k=1", "k=2", "--jobs", "2"]
        words = ["--jobs=2", "x=1", "--vary=k=1", "y=1"]
        assert compare.without_overrides(words) == (["--jobs=2", "--vary=k=1"], ["x=1", "y=1"])

    @pytest.mark.parametrize(
        "words, line",
        [
            ("--seeds 0", "what is compared"),
            ("--config-file a.py", "what is compared"),
            ("--config-file a.py --configs b.py --variants focal", "what is compared"),
            ("--config-file a.py --variants focal --vary k=1", "NAME:KEY=VALUE"),
            ("--configs a.py --vary k=1 --rates 1 --choose a b", "one at a time"),
            ("--configs a.py --rates 1", "go together"),
            ("--configs a.py --choose a b", "go together"),
            ("--configs a.py --jobs 0", "--jobs 0"),
            ("--configs a.py --seeds 0 -1", "--seeds -1: give whole numbers from 0 up"),
            ("--config-file a.py --variants focal --rates 0.1 nan", "--rates nan: give .* above 0"),
            ("--config-file a.py --variants focal --rates inf", "--rates inf: give"),
            ("--config-file a.py --variants focal --rates 0", "--rates 0: give"),
            ("--config-file a.py --variants focal --rates -0.1", "--rates -0.1: give"),
        ],
    )
    def test_what_does_not_go_together_is_one_line(self, words, line):
        with pytest.raises(BadInput, match=line):
            compare.parse_args(words.split())

    def test_old_command_lines_are_understood(self):
        args = compare.parse_args(
            f"--configs {FULL} b.py --rates 0.02 0.04 --choose train val --final trainval test "
            "--output results/bccd.json".split()
        )
        assert (args.configs, args.rates, args.jobs) == ([FULL, "b.py"], [0.02, 0.04], 1)
        assert (args.choose, args.final) == (["train", "val"], ["trainval", "test"])

    def test_what_is_given_twice_counts_once(self, stage, capsys):
        stage.run("--variants", "sampling_free", "--seeds", "0", "0", "--rates", "0.1", "0.10")
        assert len(stage.calls()) == 1
        assert "One seed each" in capsys.readouterr().out

    @pytest.mark.parametrize("option", ["--folder", "--output", "--report"])
    def test_a_place_that_cannot_be_written_is_said_before_the_first_run(self, stage, option):
        (stage.folder / "file").touch()
        with pytest.raises(BadInput, match=f"^{option} .*file/x: cannot be written"):
            stage.run("--configs", stage.config, option, f"{stage.folder}/file/x")
        assert stage.calls() == []


class TestPlan:
    @pytest.mark.parametrize(
        "words, line",
        [
            (["focl"], "focl.*known.*focal"),
            (["focal:model.focal_los_alpha=1"], "did you mean model.focal_loss_alpha"),
            (["sampled"], "sampled"),
        ],
    )
    def test_a_mistake_in_the_last_variant_is_said_before_the_first_run(self, stage, words, line):
        with pytest.raises(BadInput, match=line):
            stage.run("--variants", "sampling_free", *words)
        assert stage.calls() == [] and not (stage.folder / "runs").exists()

    def test_a_misspelt_override_of_all_is_said_too(self, stage):
        with pytest.raises(BadInput, match="max_iter"):
            stage.run("--variants", "sampling_free", "train.max_itr=3")

    def test_all_variants_have_the_test_threshold_of_the_sampling_free_one(self):
        config = str(ROOT / "configs/bccd/retinanet_R_18_FPN.py")
        for overrides, expected in ([], 0.001), (["model.test_score_thresh=0.02"], 0.02):
            runs = runs_of_variants(config, ["focal", "all_samples"], overrides)
            plans = plan(with_seeds(runs, [0]), "out")
            assert [one.facts["test_score_thresh"] for one in plans] == [expected] * 2
            for one in plans:
                cfg = load_config(config, one.run.changes(), variant=one.run.variant)
                assert cfg.model.test_score_thresh == expected
        assert [bool(one.usual) for one in plans] == [True, False]

    @pytest.mark.parametrize(
        "config, baseline, keys, shared, usual",
        [
            ("demo/fcos.py", "focal", ["model.test_score_thresh"], 0.0316, 0.2),
            ("demo/atss.py", "focal", ["model.test_score_thresh"], 0.001, 0.05),
            (
                "demo/faster_rcnn.py",
                "ohem",
                ["model.roi_heads.box_predictor.test_score_thresh"],
                0.001,
                0.05,
            ),
            (
                "demo/cascade_rcnn.py",
                "sampled",
                [f"model.roi_heads.box_predictors.{i}.test_score_thresh" for i in range(3)],
                0.001,
                0.05,
            ),
            (RETINANET, "ghm", ["MODEL.RETINANET.SCORE_THRESH_TEST"], 0.001, 0.05),
        ],
    )
    def test_thresholds_of_every_kind(self, config, baseline, keys, shared, usual):
        path = config if config.endswith(".yaml") else str(ROOT / "configs" / config)
        settings = shared_settings(load_config(path, variant="sampling_free"))
        assert settings == tuple(f"{key}={shared}" for key in keys)
        cfg = load_config(path, list(settings), variant=baseline)
        assert score_thresholds(cfg) == dict.fromkeys(keys, shared)
        settings = usual_settings(cfg)
        assert settings == tuple(f"{key}={usual}" for key in keys)
        cfg = load_config(path, list(settings), variant=baseline)
        assert score_thresholds(cfg) == dict.fromkeys(keys, usual)
        assert usual_settings(cfg) == ()

    def test_a_threshold_that_follows_from_the_prior_cannot_be_shared(self):
        config = str(ROOT / "configs/demo/retinanet.py")
        with pytest.raises(BadInput, match="model.test_score_thresh=prior.*give a number"):
            runs_of_variants(config, ["focal"], ["model.test_score_thresh=prior"])

    @pytest.mark.parametrize("config", ["bccd/retinanet_R_18_FPN.py", "demo/retinanet.py"])
    def test_the_changes_of_a_run_are_keys_of_the_configs(self, config):
        splits = ("train", "val") if "bccd" in config else (None, None)
        path = str(ROOT / "configs" / config)
        run = Run(path, None, "model.guide=2.0", learning_rate=0.5, seed=7, splits=splits)
        cfg = load_config(path, run.changes())
        assert (cfg.optimizer.lr, cfg.train.seed, cfg.model.guide) == (0.5, 7, 2.0)
        if splits[0]:
            names = cfg.dataloader.train.dataset.names
            assert (names.split, names.name) == ("train", "compare_train")

    def test_names_of_folders(self):
        assert Run("a/b.py", seed=1).name == "b_seed1"
        old = Run(FULL, override="model.guide=2.0", learning_rate=0.04, splits=("train", "val"))
        assert old.name == "retinanet_R_18_FPN_model.guide-2.0_lr0.04_seed0_train_val"
        assert Run("b.py", "focal", seed=0).name == "b_focal_seed0"
        assert slug("k=[1,2]") != slug("k=(1,2)") and "[" not in slug("k=[1,2]")

    def test_the_digest_of_the_config_ends_the_name_of_the_folder(self, stage):
        (one,) = planned(stage)
        digest = config_digest(load_config(stage.config, ["train.max_iter=4", "train.seed=0"]))
        assert one.folder == f"{stage.folder}/runs/config_seed0_{digest[:6]}"

    def test_two_configs_of_one_name_cannot_be_compared(self, tmp_path):
        for name in "ab":
            (tmp_path / name).mkdir()
            tiny_run.write_config(tmp_path / name)
        configs = [str(tmp_path / name / "config.py") for name in "ab"]
        for text in "", "\ntrain.max_iter = 3\n":
            Path(configs[1]).write_text(Path(configs[1]).read_text() + text)
            with pytest.raises(BadInput, match="both would be called config_.*different names"):
                plan(runs_of_configs(configs, [None], []), "out")

    def test_own_overrides_part_at_commas_before_a_key(self):
        assert split_overrides("a.b=[1,2],c=3,d.0.e='x'") == ["a.b=[1,2]", "c=3", "d.0.e='x'"]
        assert split_overrides(None) == []

    def test_the_digest_is_of_what_the_config_says(self, stage):
        digests = [
            config_digest(load_config(stage.config, overrides))
            for overrides in ([], ["train.output_dir=x"], ["optimizer.lr=1"], ["train.max_iter=3"])
        ]
        assert digests[0] == digests[1] and len(set(digests)) == 3

    def test_the_digest_is_the_same_in_another_process(self, stage):
        code = (
            "import sys; from sampling_free.config import load_config; "
            "from sampling_free.comparison.runs import config_digest; "
            "print(config_digest(load_config(sys.argv[1])))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, stage.config],
            capture_output=True,
            text=True,
            env={**tiny_run.environment(), "PYTHONHASHSEED": "7"},
        )
        assert done.stdout.strip() == config_digest(load_config(stage.config)), done.stderr

    def test_objects_in_a_config_count_by_their_values(self):
        def digest(value):
            cfg = OmegaConf.create({"train": {}}, flags={"allow_objects": True})
            cfg.train.x = value
            return config_digest(cfg)

        assert digest(len) != digest(max)
        assert digest(lambda: 1) == digest(lambda: 1), "no address in it"


class TestRuns:
    def test_variants_run_with_the_same_settings_and_are_done_once(self, stage):
        words = ["--variants", "sampling_free", "all_samples:model.prior=0.5", "--seeds", "0", "1"]
        words += ["--output", f"{stage.folder}/r.json", "train.max_iter=40"]
        assert stage.run(*words) == []
        calls = stage.calls()
        assert len(calls) == 4 and all("model.test_score_thresh=0.001" in c for c in calls)
        assert all("train.max_iter=40" in c and "train.monitor_period=2" in c for c in calls)
        assert [c[c.index("--variant") + 1] for c in calls] == [
            "sampling_free",
            "sampling_free",
            "all_samples",
            "all_samples",
        ]
        assert ["model.prior=0.5" in c for c in calls] == [False, False, True, True]
        assert stage.run(*words) == [] and stage.calls() == []

        record = stage.result("config_all_samples_model.prior-0.5_seed1")
        assert record["complete"] is True and record["bbox/AP"] == 41.0
        assert record["bbox/AP-cat"] is None, "NaN is no JSON"
        assert record["overrides"] == ["train.max_iter=40"] and record["max_iter"] == 40
        assert record["seconds_per_iteration"] == 0.25 and record["jobs"] == 1
        assert record["course"] == {"iteration": [19, 39], "total_loss": [2.0, 2.0]}
        assert 5 < record["peak_memory_mib"] < 5000

        kept = json.loads((stage.folder / "r.json").read_text())
        assert len(kept["runs"]) == 4 and "course" not in kept["runs"][0]
        assert [row["name"] for row in kept["summary"]] == [
            "sampling_free",
            "all_samples:model.prior=0.5",
        ]
        assert kept["summary"][1]["differences"]["bbox/AP"]["values"] == [0.0, 0.0]

    def test_the_folder_may_come_from_elsewhere_and_so_may_the_output(self, stage):
        words = ["--variants", "sampling_free", "--output", f"{stage.folder}/r.json"]
        stage.run(*words)
        (stage.folder / "runs").rename(stage.folder / "moved")
        stage.calls()
        stage.run(*words)  # the records alone
        stage.run(*words[:2], "--folder", f"{stage.folder}/moved")
        assert stage.calls() == []

    def test_a_baseline_is_tested_at_its_usual_threshold_too(self, stage, capsys):
        stage.run("--variants", "sampling_free", "focal")
        *_, train, again = stage.calls()
        folder = stage.place("config_focal_seed0")
        assert "--eval-only" in again and "--eval-only" not in train
        assert f"train.init_checkpoint='{folder}/model_final.pth'" in again
        low, usual = "model.test_score_thresh=0.001", "model.test_score_thresh=0.05"
        assert again.index(usual) > again.index(low), "the later one wins"
        record = stage.result("config_focal_seed0")
        assert record["at_default_threshold"]["bbox/AP"] == 30.0
        assert record["at_default_threshold"]["test_score_thresh"] == 0.05
        assert (record["bbox/AP"], record["test_score_thresh"]) == (40.0, 0.001)
        assert "| focal, threshold 0.05 |" in capsys.readouterr().out

    def test_a_run_that_diverges_is_a_row_and_is_not_repeated(self, stage, capsys):
        words = ["--variants", "sampling_free", "--seeds", "0", str(DIVERGES)]
        assert stage.run(*words) == []
        assert "diverged (1 of 2)" in capsys.readouterr().out
        record = stage.result(f"config_sampling_free_seed{DIVERGES}")
        assert "not finite" in record["failed"]
        assert record["curves"] == [{"iterations": 3, "guide/r": None, "num_pos_anchors": 7.0}]
        assert record["score_histograms"] == {"cls": {"edges": [0.0, None]}}
        stage.calls()
        stage.run(*words)
        assert stage.calls() == []

    def test_a_run_that_crashes_leaves_the_others_alone_and_is_tried_again(self, stage, capsys):
        words = ["--configs", stage.config, "--seeds", str(CRASHES), "1"]
        for _ in range(2):
            (line,) = stage.run(*words)
            assert "RuntimeError: no room on the disk" in line
            assert line.endswith(f"{stage.place(f'config_seed{CRASHES}')}/output.txt")
        assert len(stage.calls()) == 3
        assert stage.result("config_seed1")["bbox/AP"] == 41.0
        assert not (stage.place(f"config_seed{CRASHES}") / "result.json").exists()
        assert not list(stage.folder.glob("runs/*/lock.json"))

    def test_failures_are_lines_and_exit_code_2(self, stage, monkeypatch, capsys):
        monkeypatch.setattr(compare, "compare", lambda args: ["first", "second"])
        monkeypatch.setattr(sys, "argv", ["compare.py", "--configs", stage.config])
        monkeypatch.setattr(compare.signal, "signal", lambda *args: None)
        with pytest.raises(SystemExit) as raised:
            compare.main()
        assert raised.value.code == 2
        assert capsys.readouterr().err == "error: first\nerror: second\n"

    def test_a_torn_result_is_noticed_and_the_run_repeated(self, stage, capsys):
        stage.run("--configs", stage.config)
        path = stage.place("config_seed0") / "result.json"
        path.write_text(path.read_text()[:-30])
        stage.calls()
        stage.run("--configs", stage.config)
        assert len(stage.calls()) == 1
        assert "result.json is torn; the run is repeated" in capsys.readouterr().out
        assert stage.result("config_seed0")["complete"] is True
        rows = (path.parent / "metrics.json").read_text().splitlines()
        assert len(rows) == 3, "of one run alone"

    def test_runs_of_other_settings_stay_beside_each_other(self, stage):
        before = Path(stage.config).read_text()
        for text, words in (
            (before, []),
            (before + "\noptimizer.lr = 0.001\n", []),
            (before, ["train.max_iter=9"]),
        ):
            Path(stage.config).write_text(text)
            stage.run("--configs", stage.config, *words)
            assert len(stage.calls()) == 1
            stage.run("--configs", stage.config, *words)
            assert stage.calls() == []
        assert len(list(stage.folder.glob("runs/*/result.json"))) == 3
        stage.run("--configs", stage.config)
        assert stage.calls() == []

    def test_another_spelling_of_the_same_settings_is_the_same_run(self, stage, monkeypatch):
        monkeypatch.chdir(stage.folder)
        words = ["--output", f"{stage.folder}/r.json", "--seeds", "0"]
        changes = ["train.max_iter=4", "optimizer.weight_decay=0.1"]
        stage.run("--configs", stage.config, *words, *changes)
        stage.calls()
        stage.run("--configs", "config.py", *words, "1", *reversed(changes))
        (call,) = stage.calls()
        assert "train.seed=1" in call
        stage.run("--configs", "./config.py", *words, "1", *changes, "--folder", "elsewhere")
        assert stage.calls() == [], "the records in the output do"
        kept = json.loads((stage.folder / "r.json").read_text())
        assert [r["config"] for r in kept["runs"]] == ["./config.py"] * 2
        assert [row["seeds"] for row in kept["summary"]] == [[0, 1]]

    def test_a_finished_run_of_something_else_is_never_deleted(self, stage):
        (one,) = planned(stage)
        os.makedirs(one.folder)
        text = json.dumps({**one.identity, "digest": "other", "complete": True})
        (Path(one.folder) / "result.json").write_text(text)
        work = side_by_side()
        assert work.run([one], "") == [] and stage.calls() == []
        (line,) = work.failures.values()
        assert "result.json is of another run" in line and "another --folder" in line
        assert (Path(one.folder) / "result.json").read_text() == text
        assert os.listdir(one.folder) == ["result.json"]

    @pytest.mark.parametrize("same", [True, False])
    def test_a_half_done_run_goes_on_if_it_is_the_same(self, stage, same, capsys):
        (one,) = planned(stage)
        os.makedirs(one.folder)
        begun = one.identity if same else {**one.identity, "digest": "other"}
        (Path(one.folder) / "run.json").write_text(json.dumps(begun))
        (Path(one.folder) / "last_checkpoint").write_text("model_0000001.pth")
        (Path(one.folder) / "metrics.json").write_text('{"iteration": 1, "total_loss": 7.0}\n')
        (record,) = side_by_side().run([one], "")
        (words,) = stage.calls()
        assert ("--resume" in words) == same
        assert (record["course"]["total_loss"][0] == 7.0) == same
        assert (record["peak_memory_mib"] is None) == same, "that of the last process is too little"
        how = "it goes on from its last checkpoint" if same else "the run is repeated"
        assert how in capsys.readouterr().out

    def test_a_folder_of_something_else_is_not_emptied(self, stage):
        (one,) = planned(stage)
        os.makedirs(one.folder)
        (Path(one.folder) / "thesis.tex").write_text("years")
        work = side_by_side()
        assert work.run([one], "") == []
        (line,) = work.failures.values()
        assert "thesis.tex" in line and "another --folder" in line
        assert (Path(one.folder) / "thesis.tex").read_text() == "years"
        assert os.listdir(one.folder) == ["thesis.tex"]

    def test_rates_are_chosen_on_their_splits_and_the_finals_take_them(self, stage, monkeypatch):
        monkeypatch.setattr(compare, "plan", without_reading(compare.plan))
        words = ["--configs", stage.config, "--rates", "0.1", "0.2", "--choose", "train", "val"]
        stage.run(*words, "--final", "trainval", "test", "--output", f"{stage.folder}/r.json")
        *tried, final = stage.calls()
        assert [c for call in tried for c in call if "optimizer.lr" in c] == [
            "optimizer.lr=0.1",
            "optimizer.lr=0.2",
        ]
        assert "dataloader.test.dataset.names.split=val" in tried[0]
        assert "optimizer.lr=0.1" in final, "of equal AP the first"
        assert "dataloader.train.dataset.names.split=trainval" in final
        kept = json.loads((stage.folder / "r.json").read_text())
        assert [r.get("choosing", False) for r in kept["runs"]] == [True, True, False]
        assert len(kept["summary"]) == 1 and kept["summary"][0]["learning_rate"] == 0.1

    def test_variants_may_have_a_row_for_each_rate(self, stage, capsys):
        stage.run("--variants", "sampling_free", "--rates", "0.1", "0.2")
        out = capsys.readouterr().out
        assert "| sampling_free, rate 0.1 |" in out and "| sampling_free, rate 0.2 |" in out

    def test_the_best_rate_is_that_of_best_ap_of_the_same_run(self):
        rows = [
            {"config": FULL, "learning_rate": 0.02, "bbox/AP": 41.0},
            {"config": FULL, "learning_rate": 0.04, "bbox/AP": 40.0},
            {"config": FULL, "learning_rate": 0.08, "failed": "not finite"},
            {"config": "other.py", "learning_rate": 0.32, "bbox/AP": 90.0},
            {"config": FULL, "variant": "focal", "learning_rate": 0.16, "bbox/AP": 50.0},
        ]
        assert [r.learning_rate for r in compare.chosen_rates([Run(FULL)], rows)] == [0.02]
        chosen = compare.chosen_rates([Run(FULL, "focal")], rows)
        assert [r.learning_rate for r in chosen] == [0.16]
        with pytest.raises(BadInput, match="no learning rate"):
            compare.chosen_rates([Run(FULL)], rows[2:])


def without_reading(function):
    """:func:`plan` for splits that the tiny config does not have."""

    def plan_of(runs, folder):
        bare = function([Run(run.config, seed=run.seed) for run in runs[:1]], folder)[0]
        return [
            type(bare)(
                run,
                f"{folder}/{run.name}",
                run.identity("digest"),
                bare.facts,
                bare.extra,
                (),
            )
            for run in runs
        ]

    return plan_of


class TestRecords:
    def test_a_record_is_of_a_run_however_it_is_spelt(self):
        run = Run("configs/a.py", overrides=("x=1", "y=2"), learning_rate=0.1, seed=3)
        record = {**run.identity("abc"), "bbox/AP": 40.0}
        shared = dict(learning_rate=0.1, seed=3)
        assert is_record_of(record, Run("./configs/a.py", **shared).identity("abc"))
        assert not is_record_of(record, run.identity("abd"))
        for other in (
            Run("configs/b.py", **shared),  # the rows would be called otherwise
            Run("configs/a.py", "focal", **shared),
            Run("configs/a.py", None, "x=1", **shared),
            Run("configs/a.py", learning_rate=0.2, seed=3),
            Run("configs/a.py", learning_rate=0.1, seed=4),
            Run("configs/a.py", splits=("train", None), **shared),
            Run("configs/a.py", splits=(None, "val"), **shared),
        ):
            assert not is_record_of(record, other.identity("abc")), other
        focal = Run("a.py", "focal").identity("abc")
        assert is_record_of(focal, Run("b.py", "focal").identity("abc"))

    def test_a_record_of_before_counts_where_it_agrees(self):
        old = {"config": FULL, "learning_rate": 0.04, "seed": 0}
        old.update(train_split="train", test_split="val")
        splits = ("train", "val")
        run = Run(FULL, learning_rate=0.04, splits=splits)
        assert is_record_of(old, run.identity("abc"))
        assert not is_record_of({**old, "digest": "other"}, run.identity("abc"))
        for other in (
            Run(FULL, "focal", learning_rate=0.04, splits=splits),
            Run(FULL, None, "model.guide=1.0", learning_rate=0.04, splits=splits),
            Run(FULL, overrides=("train.max_iter=3",), learning_rate=0.04, splits=splits),
            Run(FULL, learning_rate=0.08, splits=splits),
            Run(FULL, learning_rate=0.04, seed=1, splits=splits),
            Run(FULL, learning_rate=0.04),
        ):
            assert not is_record_of(old, other.identity("abc")), other

    def test_committed_results_are_done_and_stay_as_they_are(self, stage, monkeypatch):
        path = stage.folder / "demo.json"
        path.write_text((ROOT / "results" / "demo.json").read_text())
        before = path.read_bytes()
        config = "configs/demo/retinanet.py"
        monkeypatch.chdir(ROOT)
        words = ["--configs", config, "--seeds", "0", "1", "2", "--output", str(path)]
        assert stage.run(*words) == [] and stage.calls() == []
        assert path.read_bytes() == before

    def test_other_records_in_the_output_stay(self, stage):
        path = stage.folder / "r.json"
        other = {"config": "other.py", "seed": 0, "bbox/AP": 3.0}
        stale = {"config": stage.config, "seed": 0, "digest": "old", "bbox/AP": 4.0}
        path.write_text(json.dumps([other, stale]))
        stage.run("--configs", stage.config, "--output", str(path))
        runs = json.loads(path.read_text())["runs"]
        assert len(runs) == 2 and runs[0] == other and runs[1]["bbox/AP"] == 40.0

    def test_an_output_of_something_else_is_one_line(self, tmp_path):
        for text in ("{", '{"a": 1}', "[1, 2]"):
            (tmp_path / "r.json").write_text(text)
            with pytest.raises(BadInput, match="r.json: holds no records"):
                Output(str(tmp_path / "r.json"))

    def test_what_cannot_be_written_leaves_no_file(self, tmp_path):
        with pytest.raises(ValueError):
            write_json(str(tmp_path / "r.json"), {"x": float("nan")})
        (tmp_path / "folder.json").mkdir()
        with pytest.raises(OSError):
            write_json(str(tmp_path / "folder.json"), {})
        assert os.listdir(tmp_path) == ["folder.json"]

    def test_an_output_that_cannot_be_written_any_more_is_one_line(self, tmp_path):
        output = Output(str(tmp_path / "folder" / "r.json"))
        (tmp_path / "folder").touch()
        with pytest.raises(BadInput, match="r.json: .*; the records are in the folders"):
            output.write([{"config": "a.py", "seed": 0}])


class TestSideBySide:
    def test_a_full_disk_fails_the_run_and_not_the_others(self, stage, monkeypatch, capsys):
        def write(path, value, indent=1):
            if path.endswith("result.json") and value["seed"] == 0:
                raise OSError(28, "No space left on device")
            write_json(path, value, indent)

        monkeypatch.setattr("sampling_free.comparison.run.write_json", write)
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
        monkeypatch.setenv("SECONDS", "0.5")
        plans = planned(stage, range(4))
        records = side_by_side(jobs=2).run(plans, "")
        assert [r["seed"] for r in records] == [0, 1, 2, 3]
        spans = [read_json(f"{one.folder}/times.json") for one in plans]
        at_once = [sum(a <= start < b for a, b in spans) for start, _ in spans]
        assert max(at_once) == 2
        assert records[0]["jobs"] == 2

    def test_two_comparisons_do_no_run_twice(self, stage, monkeypatch):
        monkeypatch.setenv("SECONDS", "0.2")
        plans = planned(stage, range(4))
        both = [side_by_side(), side_by_side()]
        threads = [threading.Thread(target=one.run, args=(plans, "")) for one in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(stage.calls()) == 4
        assert [len(one.records) for one in both] == [4, 4]

    def test_a_run_that_is_locked_is_waited_for(self, stage, capsys):
        first, second = plans = planned(stage, (0, 1))
        lock = Lock(first.folder)
        assert lock.take()
        thread = threading.Timer(0.5, lock.release)
        thread.start()
        records = side_by_side().run(plans, "")
        assert [r["seed"] for r in records] == [0, 1]
        order = [w for call in stage.calls() for w in call if w.startswith("train.seed")]
        assert order == ["train.seed=1", "train.seed=0"], "what is free goes first"
        assert f"remove {lock.path}" in capsys.readouterr().out

    def test_an_interrupt_ends_the_processes_and_keeps_what_is_done(self, stage):
        plans = planned(stage, (0, HANGS, 1))

        def interrupt():
            raise KeyboardInterrupt

        start = time.time()
        work = side_by_side(jobs=2)
        with pytest.raises(KeyboardInterrupt):
            work.run(plans, "", interrupt)
        assert time.time() - start < 30
        assert result_of(plans[0])["bbox/AP"] == 40.0 and result_of(plans[1]) is None
        assert not list(stage.folder.glob("runs/*/lock.json"))
        for line in (stage.folder / "calls").read_text().splitlines():
            with pytest.raises(ProcessLookupError):
                os.kill(json.loads(line)["pid"], 0)

    def test_nothing_starts_after_the_end(self, tmp_path):
        processes = Processes()
        processes.stop()
        with pytest.raises(Stopped):
            processes.call([sys.executable, "-c", ""], str(tmp_path / "out"), {})


class TestLock:
    def test_it_is_taken_once(self, tmp_path):
        folder = str(tmp_path / "run")
        first, second = Lock(folder), Lock(folder)
        assert first.take() and not second.take()
        assert second.holder() == {"pid": os.getpid(), "host": socket.gethostname()}
        first.release()
        assert second.take() and os.listdir(folder) == ["lock.json"]

    def test_that_of_a_dead_process_is_void_on_its_own_machine_alone(self, tmp_path):
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        for host, is_free in (socket.gethostname(), True), ("elsewhere", False):
            lock = Lock(str(tmp_path / host))
            os.makedirs(lock.folder)
            Path(lock.path).write_text(json.dumps({"pid": dead.pid, "host": host}))
            assert lock.take() is is_free

    def test_it_holds_while_the_run_lives_though_the_comparison_was_killed(self, tmp_path):
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        lock = Lock(str(tmp_path))
        Path(lock.path).write_text(json.dumps({"pid": dead.pid, "host": socket.gethostname()}))
        lock.add(os.getpid())
        assert not lock.take()
        lock.add(dead.pid)
        assert lock.take()


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

    def test_gpu_memory_is_the_most_that_was_logged(self, tmp_path):
        rows = [{"iteration": i, "max_mem_mb": x} for i, x in enumerate((10.0, 30.0, 20.0))]
        (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
        assert outcome.training_numbers(tmp_path)["gpu_memory_mib"] == 30.0

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

    def test_classes_without_objects_have_no_curve(self):
        some = Matches(np.array([0.9, 0.8]), np.array([True, False]), 1)
        none = Matches(np.array([0.7]), np.array([False]), 0)
        nothing = Matches(np.zeros(0), np.zeros(0, bool), 2)
        found = curves_of_classes({"cat": some, "dog": none, "cow": nothing})
        assert list(found) == ["all", "cat", "cow"]
        assert found["cat"]["precision"] == [1.0] * 101
        assert found["cow"]["precision"] == [0.0] * 101


def test_a_real_run_of_a_baseline(tmp_path):
    config = tiny_run.write_config(tmp_path)
    words = ["--config-file", config, "--variants", "focal", "--folder", str(tmp_path / "a folder")]
    command = [sys.executable, str(ROOT / "tools" / "compare.py"), *words, "train.max_iter=2"]
    done = subprocess.run(command, capture_output=True, text=True, env=tiny_run.environment())
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "a folder").glob("config_focal_seed0_*")
    record = json.loads((folder / "result.json").read_text())
    assert 0 <= record["bbox/AP"] <= 100 and record["test_score_thresh"] == 0.001
    assert record["at_default_threshold"]["test_score_thresh"] == 0.05
    assert 0 <= record["at_default_threshold"]["bbox/AP"] <= 100
    assert len(record["precision_recall"]["all"]["precision"]) == 101
    assert len(record["course"]["total_loss"]) == len(record["course"]["iteration"]) == 2
    assert any(key.startswith("monitor/") for key in record["course"])
    assert record["peak_memory_mib"] > 100 and record["score_histograms"]
    assert (folder / record["pictures"]).is_file()
