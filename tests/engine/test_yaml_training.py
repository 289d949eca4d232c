"""Overrides of YAML configs, and the training of them."""

import shutil
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import (
    DatasetEvaluator,
)
from detectron2.utils.env import seed_all_rng

from helpers.tiny_run import (
    load,
    log_lines,
    metrics,
    same,
    train_net,
)
from helpers.yaml_files import C4, CASCADE, FASTER, RETINANET, ROOT, message, zoo
from sampling_free import BadInput, PriorInit, convert
from sampling_free.config.cfg_node import cfg_node, lazy_from_cfg_node, read_cfg_node
from sampling_free.config.load import load_config
from sampling_free.data.datasets import load_dataset
from sampling_free.engine import resumable
from sampling_free.engine.trainer import LazyTrainer

# Overrides -------------------------------------------------------------------------------------


def test_both_kinds_of_overrides_at_once():
    overrides = [
        "SOLVER.MAX_ITER", "50", "train.num_pictures=2", "SOLVER.STEPS", "(20,40)",
        "DATASETS.TRAIN", "('a','b')", "dataloader.train.unreadable=skip", "OUTPUT_DIR", "x=y",
        "optimizer.momentum=0.5", "cfg.SOLVER.BASE_LR=0.125", "SOLVER.MAX_ITER", "60",
    ]  # fmt: skip
    lazy = load_config(FASTER, overrides)
    assert lazy.train.max_iter == 60 == lazy.cfg.SOLVER.MAX_ITER
    assert lazy.train.num_pictures == 2 and lazy.train.output_dir == "x=y"
    assert lazy.dataloader.train.dataset.names == ["a", "b"]
    assert lazy.dataloader.train.unreadable == "skip"
    assert lazy.optimizer.momentum == 0.5 and lazy.optimizer.lr == 0.125
    assert lazy.optimizer.params.base_lr == 0.125
    assert cfg_node(lazy.cfg).SOLVER.STEPS == (20, 40)
    assert overrides[0] == "SOLVER.MAX_ITER"  # the list is the caller's


def test_overrides_win_over_the_conversion():
    overrides = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3", "MODEL.SAMPLING_FREE.PRIOR", "0.1"]
    cfg = load_config(FASTER, overrides, True).cfg
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.3
    assert cfg.MODEL.ROI_HEADS.NAME == "SamplingFreeStandardROIHeads"
    lazy = load_config(model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.py"),
                       ["model.prior=0.1", "model.guide=2"], True)  # fmt: skip
    assert lazy.model.prior == 0.1 and lazy.model.guide == 2


@pytest.mark.parametrize(
    "overrides, parts",
    [
        (["SOLVER.MAX_ITR", "5"], ["SOLVER.MAX_ITR", "did you mean SOLVER.MAX_ITER?"]),
        (["solver.max_iter", "5"], ["solver.max_iter", "did you mean SOLVER?"]),
        (["SOLVR.MAX_ITER", "5"], ["'SOLVR' in the config", "did you mean SOLVER?"]),
        (["MODEL.SAMPLING_FREE.PRIR", "5"], ["did you mean MODEL.SAMPLING_FREE.PRIOR?"]),
        (["MODEL.SAMPLING_FREE.ZZZZ", "5"], ["known: ", "GUIDE"]),
        (["SOLVER.MAX_ITER.ONE", "5"], ["'ONE' in SOLVER.MAX_ITER"]),
        (["SOLVER.MAX_ITER"], ["SOLVER.MAX_ITER: its value is missing"]),
        (["SOLVER.MAX_ITER", "5", "SEED"], ["SEED: its value is missing"]),
        (["SOLVER.MAX_ITER", "many"], ["SOLVER.MAX_ITER many", "int", "str"]),
        (["MODEL.MASK_ON", "3"], ["MODEL.MASK_ON 3", "bool"]),
        (["SOLVER.MAX_ITER", "0"], ["train.max_iter=0"]),
        (["train.max_itr=5"], ["train.max_itr", "train.max_iter?"]),
        (["SOLVER.MAX_ITER", "5", "optimizer.lrr=1"], ["optimizer.lrr", "optimizer.lr?"]),
        (["--resume"], ["--resume: its value is missing"]),
    ],
)
def test_a_mistake_in_an_override_is_one_line(overrides, parts):
    line = message(FASTER, overrides)
    assert all(part in line for part in parts), line


def test_a_name_of_the_model_zoo_is_a_config_file():
    lazy = load_config(FASTER)
    assert cfg_node(lazy.cfg).MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    assert lazy.model.cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads"
    py = load_config("COCO-Detection/fcos_R_50_FPN_1x.py")
    assert py.model._target_.__name__ == "FCOS"
    for name in ("COCO-Detection/nothing.yaml", "COCO-Detection/nothing.py"):
        assert f"{name}: no such config file" in message(name)


def test_what_cannot_be_converted_is_one_line_of_load_config(tmp_path):
    assert "SemanticSegmentor" in message("Misc/semantic_R_50_FPN_1x.yaml", [], True)
    path = tmp_path / "a.yaml"
    path.write_text(f'_BASE_: "{ROOT / FASTER}"\nMODEL: {{ROI_HEADS: {{NAME: PointRend}}}}\n')
    assert "MODEL.ROI_HEADS.NAME = PointRend" in message(str(path), [], True)
    assert load_config(str(path)).cfg.MODEL.ROI_HEADS.NAME == "PointRend"
    # A LazyConfig, too.
    assert "ClassificationNet" in message("Misc/torchvision_imagenet_R_50.py", [], True)


def test_a_saved_run_of_a_yaml_config_is_converted_already(tmp_path):
    lazy = load_config(FASTER, [], True)
    LazyConfig.save(lazy, str(tmp_path / "config.yaml"))
    again = load_config(str(tmp_path / "config.yaml"), [], True)
    assert again.cfg == lazy.cfg


@pytest.mark.parametrize("text", [b"", b"\xff\xfe\x00"])
def test_no_config_with_the_wish_to_convert_it_is_one_line(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_bytes(text)
    assert str(path) in message(str(path), [], True)


def test_a_part_of_a_config_that_is_to_be_converted_is_named(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("train = dict(max_iter=3)\n")
    assert str(path) in message(str(path), [], True)


def test_a_reference_world_size_is_not_ignored_in_silence():
    with log_lines() as lines:
        lazy = lazy_from_cfg_node(zoo(SOLVER__REFERENCE_WORLD_SIZE=8))
    assert lines or lazy.dataloader.train.total_batch_size == 2


# Training --------------------------------------------------------------------------------------


def trainer(config, *overrides, sampling_free=True, resume=False):
    """As train_net.py makes it."""
    cfg = load_config(config, list(overrides), sampling_free)
    seed_all_rng(cfg.train.seed)
    made = LazyTrainer(cfg)
    made.resume_or_load(resume=resume)
    return made


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def default_trainer(cfg, loader, sampling_free):
    """Detectron2's own trainer with its own optimizer, schedule and model; trained."""

    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return loader

    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ()
    cfg.OUTPUT_DIR += "_default"
    Path(cfg.OUTPUT_DIR).mkdir()
    with log_lines("detectron2"):  # else it gives its loggers handlers for good
        seed_all_rng(cfg.SEED)
        made = Trainer(cfg)
        if sampling_free:
            made.register_hooks([PriorInit(cfg)])
        made.train()
    return made.model


SOLVER = ["SOLVER.BIAS_LR_FACTOR", "2.0", "SOLVER.WEIGHT_DECAY_NORM", "0.1",
          "SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR",
          "DATASETS.TEST", "()"]  # fmt: skip


FCOS = ["MODEL.META_ARCHITECTURE", "SamplingFreeFCOS"]
BASES = {
    "retinanet": (RETINANET, []),
    "fcos": (RETINANET, FCOS),
    "faster": (FASTER, SOLVER),
    "cascade": (CASCADE, []),
    "c4": (C4, []),
}
RUNS = [(name, how) for name in BASES for how in (True, False) if (name, how) != ("fcos", True)]


@pytest.mark.parametrize("name, converts", RUNS)
def test_default_trainer_gives_the_same_weights(tiny, name, converts, monkeypatch):
    monkeypatch.setattr(resumable, "seed_step", lambda *args: None)  # DefaultTrainer has none
    base, pairs = BASES[name]
    ours = converts or name == "fcos"
    config, pairs = tiny(base), [*pairs, "DATASETS.TEST", "()"]
    made = trainer(config, *pairs, sampling_free=converts)
    loader = made.build_train_loader(
        made.cfg, load_dataset(made.cfg.dataloader.train.dataset), made.mapper
    )
    with log_lines() as lines:
        made.train()
    assert any("Prior of the training set" in x for x in lines) == ours
    cfg = read_cfg_node(config)
    cfg = convert(cfg, quiet=True) if converts else cfg
    cfg.merge_from_list(pairs)
    expected = default_trainer(cfg, loader, ours)
    assert type(made.model) is type(expected)
    assert same(state_of(made.model), state_of(expected))
    modules = {type(m).__module__.split(".")[0] for m in expected.modules()}
    assert ("sampling_free" in modules) == ours
    assert (Path(made.cfg.train.output_dir) / "prior.json").exists() == ours


def test_overrides_cannot_undo_the_conversion(tmp_path):
    pairs = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
             "True", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.02"]  # fmt: skip
    node = cfg_node(load_config(FASTER, pairs, True).cfg)
    assert node.MODEL.ROI_HEADS.NAME == "SamplingFreeCascadeROIHeads"
    assert node.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.02  # the user's word stands


def test_key_equals_value_and_whole_nodes():
    cfg = load_config(FASTER, ["SOLVER.MAX_ITER=10", "train.log_period=3"])
    assert (cfg.train.max_iter, cfg.train.log_period) == (10, 3)
    with pytest.raises(BadInput, match="MODEL.RPN: is a node; give one of its keys: .*HEAD_NAME"):
        load_config(FASTER, ["MODEL.RPN", "3"])


def test_the_weights_are_trained(tiny):
    made = trainer(tiny(FASTER), "DATASETS.TEST", "()")
    before = state_of(made.model)
    made.train()
    changed = [k for k, v in state_of(made.model).items() if not torch.equal(v, before[k])]
    for part in ("proposal_generator.rpn_head.conv", "roi_heads.box_head", "backbone.fpn_lateral2"):
        assert any(k.startswith(part) for k in changed), part
    rows = metrics(made.cfg.train.output_dir)
    assert {"guide/rpn/r", "guide/roi/r", "loss_rpn_cls", "loss_cls", "lr"} <= set(rows[3])


@pytest.mark.parametrize("ours", [True, False])  # the stock one draws its samples
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_last_bit(tiny, tmp_path, ours):
    options = dict(sampling_free=ours)
    whole = trainer(tiny(FASTER), "DATASETS.TEST", "()", **options)
    whole.train()
    out, part = tmp_path / "out", tmp_path / "part"
    part.mkdir()
    shutil.copy(out / "model_0000001.pth", part)
    (part / "last_checkpoint").write_text("model_0000001.pth")
    where = ("OUTPUT_DIR", str(part), "DATASETS.TEST", "()")
    resumed = trainer(tiny(FASTER), *where, resume=True, **options)
    assert resumed.start_iter == 2
    with log_lines() as lines:
        resumed.train()
    assert not any("Prior of the training set" in x for x in lines)
    assert same(state_of(resumed.model), state_of(whole.model))
    a, b = (load(p / "model_final.pth") for p in (part, out))
    assert same(a["trainer"]["_trainer"], b["trainer"]["_trainer"])
    assert same(a["prior"], b["prior"])


@pytest.mark.parametrize(
    "pairs",
    [
        ["SOLVER.MAX_ITER", "3"],  # a milestone of the file is there; the zoo's: 60000, 80000
        ["SOLVER.LR_SCHEDULER_NAME", "Linear"],
        ["MODEL.META_ARCHITECTURE", "RetinaNt"],
        ["MODEL.ROI_HEADS.NAME", "Heads"],
    ],
)
def test_a_value_that_detectron2_refuses_is_bad_input(tiny, pairs):
    with pytest.raises(BadInput):
        trainer(tiny(), *pairs, sampling_free=False)


def test_mixed_precision_of_the_yaml_config(tiny):
    made = trainer(tiny(FASTER), "SOLVER.AMP.ENABLED", "True", "train.amp.dtype=bfloat16",
                   "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1")  # fmt: skip
    seen = []
    made.model.roi_heads.box_predictor.cls_score.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    made.train()
    assert seen == [torch.bfloat16]


def test_the_class_count_of_a_yaml_config_is_checked(tiny):
    for base, key in ((FASTER, "MODEL.ROI_HEADS"), (RETINANET, "MODEL.RETINANET")):
        with pytest.raises(BadInput, match="has 5 classes"):
            trainer(tiny(base), f"{key}.NUM_CLASSES", "7")
        other = {"MODEL.ROI_HEADS": "MODEL.RETINANET"}.get(key, "MODEL.ROI_HEADS")
        trainer(tiny(base), f"{other}.NUM_CLASSES", "7")  # of no concern


def test_the_line_on_the_class_count_names_the_key_of_the_yaml_config(tiny):
    with pytest.raises(BadInput, match="MODEL.ROI_HEADS.NUM_CLASSES"):
        trainer(tiny(FASTER), "MODEL.ROI_HEADS.NUM_CLASSES", "7")


@pytest.mark.parametrize("sampling_free", [True, False])
def test_a_proposal_network_is_trained_on_any_number_of_classes(tiny, sampling_free):
    config = tiny("COCO-Detection/rpn_R_50_FPN_1x.yaml")
    pairs = ["MODEL.ROI_HEADS.NUM_CLASSES", "80", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"]
    trainer(config, *pairs, sampling_free=sampling_free).train()


def test_a_proposal_network_is_trained_and_evaluated(tiny):
    made = trainer(tiny("COCO-Detection/rpn_R_50_FPN_1x.yaml"), "SOLVER.MAX_ITER", "1")
    assert set(made.train()) == {"box_proposals"}


def test_pictures_without_a_test_set_are_no_error_after_the_training(tiny):
    made = trainer(tiny(), "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1", "train.num_pictures=1")
    made.train()


def names(sets, split):
    """An override that registers the set in a process of its own."""
    files = f"json_file:{sets.files[split]},image_root:{sets.images[split]}"
    call = f"{{_target_:sampling_free.data.register_coco,name:yaml_config_own_{split},{files}}}"
    part = "train" if split == "train" else "test"
    return f"dataloader.{part}.dataset.names={call}"


def test_train_net_with_a_yaml_config(tiny, sets, tmp_path):
    config = tiny(RETINANET)
    overrides = ["SOLVER.MAX_ITER", "3", names(sets, "train"), names(sets, "val"),
                 "train.num_pictures=1", "SOLVER.STEPS", "(2,)"]  # fmt: skip
    done = train_net(config, "--sampling-free", *overrides)
    assert done.code == 0 and "Traceback" not in done.out + done.err, done.err
    assert done.out.count("Made sampling-free:") == 1
    assert "MODEL.META_ARCHITECTURE: RetinaNet -> SamplingFreeRetinaNet" in done.out
    assert "Prior of the training set" in done.out and "copypaste: AP,AP50" in done.out
    out = tmp_path / "out"
    assert {"config.yaml", "model_final.pth", "model_0000001.pth", "prior.json", "training.png",
            "best_threshold.json", "pictures"} <= {p.name for p in out.iterdir()}  # fmt: skip
    scores = {k: v for k, v in metrics(out)[3].items() if k.startswith("bbox/")}

    rows = f"[[bbox,AP,{scores['bbox/AP']},1e-9],[bbox,AP50,{scores['bbox/AP50']},1e-9]]"
    weights = ["MODEL.WEIGHTS", str(out / "model_final.pth")]
    arguments = ["--sampling-free", "--eval-only", *overrides, *weights]
    done = train_net(config, *arguments, f"train.expected_results={rows}")
    assert done.code == 0 and "copypaste: AP,AP50" in done.out, done.out + done.err
    assert "Prior of the training set" not in done.out

    # What the run has saved describes it.
    saved = load_config(str(out / "config.yaml"), ["train.max_iter=4", "train.num_pictures=0"])
    seed_all_rng(saved.train.seed)
    resumed = LazyTrainer(saved)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    assert load(out / "model_final.pth")["iteration"] == 3


class CountingEvaluator(DatasetEvaluator):
    """Counts the images that it is given."""

    def __init__(self, dataset_name):
        self.dataset_name = dataset_name

    def reset(self):
        self.num = 0

    def process(self, inputs, outputs):
        self.num += len(inputs)

    def evaluate(self):
        return {"own": {self.dataset_name: self.num}}


def test_several_evaluators_at_once(tiny, sets):
    made = trainer(tiny(), "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()")
    name = "${dataloader.test.dataset.names}"
    node = made.cfg.dataloader
    node.evaluator = [node.evaluator, L(CountingEvaluator)(dataset_name=name)]
    evaluators = LazyTrainer.build_evaluator(made.cfg)
    assert evaluators[0]._output_dir == f"{made.cfg.train.output_dir}/inference"
    results = made.train()
    assert results["own"] == {sets.names["val"]: 6} and "AP50" in results["bbox"]
