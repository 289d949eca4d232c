"""tools/compare.py: the command line, the plan, and one real run.

Other runs are those of stub_train_net.py, which trains nothing.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import compare
from helpers import tiny_run
from helpers.comparisons import FULL, ROOT, make_stage, planned
from helpers.yaml_files import RETINANET
from sampling_free.comparison.plan import plan, runs_of_configs, runs_of_variants, with_seeds
from sampling_free.comparison.spec import YOUNGER, Run, config_digest, slug, split_overrides
from sampling_free.comparison.thresholds import score_thresholds, shared_settings, usual_settings
from sampling_free.config.load import TRAIN_DEFAULTS, load_config
from sampling_free.utils.errors import BadInput


@pytest.fixture
def stage(tmp_path, monkeypatch):
    return make_stage(tmp_path, monkeypatch)


class TestCommandLine:
    def test_overrides_stand_anywhere_but_behind_an_option(self):
        words = "--configs a.py --folder x=1 --seeds 0 1 a.b=1 --jobs=2 c=[1,2] --vary k=1 k=2"
        args = compare.parse_args(words.split())
        assert (args.folder, args.jobs, args.seeds) == ("x=1", 2, [0, 1])
        assert args.vary == ["k=1", "k=2"] and args.opts == ["a.b=1", "c=[1,2]"]
        words = "x=1 --vary k=1 k=2 --best-only y=1 --seeds 0 --configs a.py --vary=k=3 z=1"
        with pytest.raises(BadInput, match="--best-only needs"):
            compare.parse_args(words.split())
        args = compare.parse_args(words.replace("--best-only ", "--jobs 1 ").split())
        assert args.vary == ["k=3"] and args.opts == ["x=1", "y=1", "z=1"]
        words = "--config-file a.py --variants focal all_samples:model.prior=0.5,model.guide=2 x=1"
        args = compare.parse_args(words.split())
        assert args.variants == words.split()[3:5] and args.opts == ["x=1"]

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
            ("--configs a.py --best-only", "--best-only needs --choose"),
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

    def test_keys_that_came_later_leave_the_digests_of_before(self, stage):
        cfg = load_config(stage.config)
        before = config_digest(cfg)
        old = cfg.copy()
        for key, value in YOUNGER.items():
            assert value == TRAIN_DEFAULTS[key]
            del old.train[key]
        assert config_digest(old) == before
        cfg.train.skip_nonfinite = 2
        assert config_digest(cfg) != before

    def test_the_digest_is_the_same_in_another_process(self, stage):
        code = (
            "import sys; from sampling_free.config.load import load_config; "
            "from sampling_free.comparison.spec import config_digest; "
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
