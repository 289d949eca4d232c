"""Several test sets, one after another; evaluators that are built before the first iteration."""

import json
from pathlib import Path

import pytest
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from helpers.tiny_run import load, metrics, run, trainer, write_config
from helpers.yaml_files import RETINANET
from sampling_free.config.cfg_node import lazy_from_cfg_node, read_cfg_node
from sampling_free.config.load import load_config
from sampling_free.data.datasets import dataset_names
from sampling_free.engine.trainer import LazyTrainer, evaluate_only
from sampling_free.evaluation.best_threshold import BestThreshold
from sampling_free.evaluation.test_sets import each_test_set
from sampling_free.utils.errors import BadInput

# The second has the images of the training set, and other scores.
TWO = """
_names = [{**_val, "name": "first_{tag}"}, {**_train, "name": "second_{tag}"}]
dataloader.test.dataset.names = _names
train.best_metric = "bbox/AP50"
"""


@pytest.fixture
def two(tmp_path):
    """A config with two test sets, and their names."""
    tag = tmp_path.name
    return write_config(tmp_path, TWO.replace("{tag}", tag)), [f"first_{tag}", f"second_{tag}"]


def test_each_is_evaluated_by_itself_and_the_first_is_what_one_alone_would_be(two, tmp_path):
    config, names = two
    made = run(config, "train.num_pictures=1")
    row = metrics(tmp_path / "out")[6]
    assert {key.split("/")[0] for key in row if key.endswith("bbox/AP")} == set(names)
    assert "bbox/AP" not in row
    for i, name in enumerate(names):
        out = tmp_path / str(i)
        alone = [f"dataloader.test.dataset.names={name}", f"train.output_dir={out}"]
        weights = f"train.init_checkpoint={tmp_path}/out/model_final.pth"
        results = evaluate_only(load_config(config, [*alone, weights]))
        assert {f"{name}/bbox/{k}": v for k, v in results["bbox"].items()} == pytest.approx(
            {k: v for k, v in row.items() if k.startswith(name)}, nan_ok=True
        )
        found = tmp_path / "out" / "inference" / name / "coco_instances_results.json"
        alone = out / "inference" / "coco_instances_results.json"
        assert json.loads(found.read_text()) == json.loads(alone.read_text())
    best = BestThreshold.load(tmp_path / "out" / "best_threshold.json")
    assert best == BestThreshold.load(tmp_path / "0" / "best_threshold.json")
    (picture,) = (tmp_path / "out" / "pictures").glob("*.jpg")
    of_the_first = [d["file_name"] for d in DatasetCatalog.get(names[0])]
    assert picture.stem in {Path(x).stem for x in of_the_first}
    state = load(tmp_path / "out" / "model_best.pth")["trainer"]["hooks"]
    assert state["StatefulBestCheckpointer"]["metric"] == f"{names[0]}/bbox/AP50"
    assert made.cfg.train.best_metric == "bbox/AP50"


def test_eval_only_and_the_expected_results(two, tmp_path):
    config, names = two
    trained = run(config, "train.max_iter=1")
    weights = f"train.init_checkpoint={trained.cfg.train.output_dir}/model_final.pth"
    results = evaluate_only(load_config(config, [weights]))
    assert list(results) == names
    stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert all(f"{name}/bbox/AP" in stored for name in names)
    ap = [results[name]["bbox"]["AP"] for name in names]
    rows = f"[[bbox,AP,{ap[0]},1e-9],['{names[1]}/bbox',AP,{ap[1]},1e-9]]"
    evaluate_only(load_config(config, [weights, f"train.expected_results={rows}"]))
    wrong = f"[['{names[1]}/bbox',AP,{ap[1] + 1},0.5]]"
    with pytest.raises(SystemExit):
        evaluate_only(load_config(config, [weights, f"train.expected_results={wrong}"]))


@pytest.mark.parametrize("metric", ["bbox/AP50", "NAME/bbox/AP50"])
def test_the_metric_of_the_best_model_may_be_of_any_set(two, metric):
    config, names = two
    made = trainer(config, f"train.best_metric={metric.replace('NAME', names[1])}")
    (hook,) = (h for h in made._hooks if hasattr(h, "best_metric"))
    assert hook._val_metric == f"{names['NAME' in metric]}/bbox/AP50"


def test_evaluators_of_ones_own_are_for_the_set_that_they_name(two):
    config, names = two
    cfg = load_config(config)
    cfg.dataloader.evaluator = [L(COCOEvaluator)(dataset_name=name) for name in names]
    cfg.dataloader.evaluator[1].output_dir = "there"
    each = each_test_set(cfg)
    assert list(each) == names
    for name, one in each.items():
        (evaluator,) = one.dataloader.evaluator
        assert evaluator.dataset_name == name and evaluator.output_dir.endswith(name)
        assert dataset_names(one.dataloader.test.dataset) == [name]
    assert each[names[1]].dataloader.evaluator[0].output_dir == f"there/{names[1]}"
    cfg.dataloader.evaluator = L(COCOEvaluator)(dataset_name=list(names))
    assert [one.dataloader.evaluator.dataset_name for one in each_test_set(cfg).values()] == names
    cfg.dataloader.evaluator = L(COCOEvaluator)(dataset_name=names[0])
    with pytest.raises(BadInput, match=f"none is for the test set '{names[1]}'.*dataset_name="):
        each_test_set(cfg)


def test_one_in_a_list_is_as_one_without(two, tmp_path):
    config, names = two
    load_dataset_names = dataset_names(load_config(config).dataloader.test.dataset)
    assert load_dataset_names == names
    made = trainer(config, f"dataloader.test.dataset.names=[{names[0]}]", "train.max_iter=1")
    results = made.train()
    assert set(results) == {"bbox"} and made.cfg.dataloader.test.dataset.names == [names[0]]


def test_classes_of_every_set_are_compared(two):
    config, (name, _) = two
    dataset_names(load_config(config).dataloader.test.dataset)
    other, classes = f"other_{name}", MetadataCatalog.get(name).thing_classes
    DatasetCatalog.register(other, lambda: DatasetCatalog.get(name))
    MetadataCatalog.get(other).thing_classes = classes[::-1]
    with pytest.raises(BadInput, match=f"{other}.*in another order"):
        trainer(config, f"dataloader.test.dataset.names=[{name},{other}]")


def test_a_list_of_loaders_is_one_line(two):
    config, _ = two
    with open(config, "a") as f:
        f.write("\ndataloader.test = [dataloader.test]\n")
    with pytest.raises(BadInput, match="dataloader.test is a list.*dataloader.test.dataset.names"):
        load_config(config)


def test_without_an_evaluator_nothing_is_evaluated(tmp_path):
    made = trainer(write_config(tmp_path), "dataloader.evaluator=null", "train.max_iter=1")
    assert made.train() in ({}, None)
    assert not any("AP" in key for row in metrics(tmp_path / "out").values() for key in row)


def test_an_evaluator_without_a_test_set_is_one_line(tmp_path):
    lines = "\ndel dataloader.test\ndataloader.evaluator.dataset_name = 'some'\n"
    with pytest.raises(BadInput, match="there is no dataloader.test"):
        trainer(write_config(tmp_path, lines))


def test_of_a_yaml_config_too(tiny, sets, tmp_path):
    names = [sets.names["val"], sets.names["train"]]
    node = read_cfg_node(tiny(RETINANET))
    node.DATASETS.TEST = tuple(names)
    cfg = lazy_from_cfg_node(node)
    for name, one in each_test_set(cfg).items():
        (evaluator,) = one.dataloader.evaluator
        assert evaluator._target_ is COCOEvaluator and evaluator.dataset_name == name
    pairs = ["DATASETS.TEST", str(tuple(names)), "SOLVER.MAX_ITER", "1", "OUTPUT_DIR"]
    made = LazyTrainer(load_config(tiny(RETINANET), [*pairs, str(tmp_path / "out")]))
    results = made.train()
    assert list(results) == names and all("AP" in results[name]["bbox"] for name in names)
    assert (tmp_path / "out" / "best_threshold.json").is_file()


# What reads as a training set, and what an evaluator trips over.
BROKEN = """
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator

class Tripping(COCOEvaluator):
    def __init__(self, dataset_name):
        raise KeyError('tag')

dataloader.evaluator = L(Tripping)(dataset_name="${..test.dataset.names}")
"""


def test_an_evaluator_that_cannot_be_built_stops_before_the_training(tmp_path):
    config = write_config(tmp_path, BROKEN)
    with pytest.raises(BadInput, match="set tiny_val_.*KeyError: 'tag'.*dataloader.evaluator=null"):
        trainer(config, "train.max_iter=1")
    assert not (tmp_path / "out" / "prior.json").exists()


def test_a_mapper_that_drops_the_id_stops_before_the_training(tmp_path):
    lines = """
_mapper = dataloader.test.mapper
_mapper.image_format = "BGR"
dataloader.test.mapper = L(tiny_run.without_id)(mapper=_mapper)
"""
    config = write_config(tmp_path, lines)
    with pytest.raises(BadInput, match="tiny_val_.*without 'image_id'.*dataloader.test.mapper"):
        trainer(config)
