import copy
import json
import os
from pathlib import Path

import detectron2.data.transforms as T
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog

from helpers.tiny import mapper_of, tiny_retinanet, write_dicts
from sampling_free.config.load import load_config
from sampling_free.counting.estimate import PriorEstimate, dependencies, estimate_prior
from sampling_free.data.datasets import dataset_names, load_dataset
from sampling_free.method.prior import bias_to_prior
from sampling_free.utils.errors import BadInput

ROOT = Path(__file__).parents[2]
NAME = "test_estimate_train"
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture
def dicts(tmp_path):
    MetadataCatalog.get(NAME).set(thing_classes=CLASSES)
    return write_dicts(tmp_path, [(64, 96), (61, 47), (50, 60)], [4, 0, 6])


def _recipe():
    return mapper_of(T.ResizeShortestEdge((48, 64), 128, "choice"), T.RandomFlip())


def _estimate(dicts, **kwargs):
    return estimate_prior(tiny_retinanet(**kwargs), dicts, _recipe(), NAME, progress=False)


class TestEstimate:
    def test_totals_levels_and_classes_agree(self, dicts):
        estimate = _estimate(dicts)
        assert list(estimate.per_class) == CLASSES
        for total in (
            sum(estimate.per_class.values()),
            sum(x["foreground"] for x in estimate.per_level),
        ):
            assert total == pytest.approx(estimate.num_foreground)
        assert sum(x["valid"] for x in estimate.per_level) == pytest.approx(estimate.num_valid)
        assert [x["stride"] for x in estimate.per_level] == [8, 16, 32, 64, 128]
        assert (estimate.num_images, estimate.num_empty_images) == (3, 1)

    def test_objects_are_counted_and_a_file_of_before_has_none(self, dicts, tmp_path):
        estimate = _estimate(dicts, low_quality=False)
        assert estimate.num_objects == 10 and 0 < estimate.num_unreached < 10
        assert f"10 objects, {estimate.num_unreached:.4g} of them reached by no" in estimate.table()
        estimate.save(tmp_path / "p.json")
        assert PriorEstimate.load(tmp_path / "p.json") == estimate
        record = json.loads((tmp_path / "p.json").read_text())
        del record["num_objects"], record["num_unreached"]
        (tmp_path / "p.json").write_text(json.dumps(record))
        old = PriorEstimate.load(tmp_path / "p.json")
        assert (old.num_objects, old.num_unreached) == (0, 0) and old.prior == estimate.prior

    def test_it_depends_on_the_recipe_and_not_on_whether_it_was_used(self, dicts):
        recipe = _recipe()
        before = dependencies(tiny_retinanet(), dicts, recipe, NAME)
        recipe(dicts[0])  # Detectron2 notes in each augmentation what it takes
        assert dependencies(tiny_retinanet(), dicts, recipe, NAME) == before

    def test_prior_and_bias_are_the_mean_label_and_its_logit(self, dicts):
        estimate = _estimate(dicts)
        labels = estimate.num_valid * 3
        assert estimate.prior == pytest.approx(estimate.num_foreground / labels)
        assert bias_to_prior(estimate.bias) == pytest.approx(estimate.prior)
        assert estimate.start_loss() < min(map(estimate.start_loss, (0.5, 0.01, 1e-5)))

    def test_the_table_has_every_count_and_the_line_for_the_config(self, dicts):
        estimate = _estimate(dicts)
        table = estimate.table()
        assert all(name in table for name in CLASSES)
        assert all(f"stride {s}" in table for s in (8, 16, 32, 64, 128))
        assert "3 images, 1 of them without an object" in table
        assert f"{estimate.prior:.4e}" in table and f"bias {estimate.bias:.3f}" in table

    def test_a_data_set_without_a_name_gets_numbered_classes(self, dicts):
        estimate = estimate_prior(tiny_retinanet(), dicts, _recipe(), progress=False)
        assert list(estimate.per_class) == ["class 0", "class 1", "class 2"]

    def test_a_set_without_foreground_is_refused(self, dicts):
        with pytest.raises(BadInput, match=f"{NAME}: no anchor is foreground in 1 images"):
            _estimate(dicts[1:2])


class TestFile:
    def test_round_trip_gives_an_equal_estimate(self, dicts, tmp_path):
        estimate = _estimate(dicts)
        path = tmp_path / "prior.json"
        estimate.save(path)
        now = dependencies(tiny_retinanet(), dicts, _recipe(), NAME)
        loaded = PriorEstimate.load(path, now)
        assert loaded == estimate and loaded.prior == estimate.prior
        assert [p.name for p in tmp_path.glob("prior*")] == ["prior.json"]
        assert json.loads(path.read_text())["prior"] == estimate.prior

    CHANGES = {
        "data set": lambda d: (tiny_retinanet(), d, _recipe(), "another_set"),
        "number of images": lambda d: (tiny_retinanet(), d[:2], _recipe(), NAME),
        "augmentations": lambda d: (
            tiny_retinanet(),
            d,
            mapper_of(T.ResizeShortestEdge((48, 65), 128, "choice"), T.RandomFlip()),
            NAME,
        ),
        "anchors": lambda d: (tiny_retinanet(ratios=(0.5, 1.0, 2.5)), d, _recipe(), NAME),
    }

    @pytest.mark.parametrize("key", CHANGES)
    def test_a_stale_file_is_refused_by_its_first_difference(self, dicts, tmp_path, key):
        path = tmp_path / "prior.json"
        _estimate(dicts).save(path)
        with pytest.raises(BadInput) as error:
            PriorEstimate.load(path, dependencies(*self.CHANGES[key](dicts)))
        assert f"{path}: stale: made with {key} = " in str(error.value)

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d[0].update(height=65),
            lambda d: d[0]["annotations"][0].update(category_id=99),
            lambda d: d[2]["annotations"][1].update(iscrowd=1),
            lambda d: d[2]["annotations"][1]["bbox"].__setitem__(2, 13.25),
            lambda d: d[0]["annotations"].pop(),
        ],
        ids=["size", "class", "crowd", "box", "one less"],
    )
    def test_a_changed_annotation_makes_it_stale(self, dicts, tmp_path, change):
        path = tmp_path / "prior.json"
        _estimate(dicts).save(path)
        changed = copy.deepcopy(dicts)
        change(changed)
        now = dependencies(tiny_retinanet(), changed, _recipe(), NAME)
        with pytest.raises(BadInput, match="stale: made with digest of sizes and boxes"):
            PriorEstimate.load(path, now)

    def test_other_strides_offsets_and_paddings_make_it_stale(self, dicts):
        model = tiny_retinanet()
        now = dependencies(model, dicts, _recipe(), NAME)
        model.anchor_generator.strides = [4, 8, 16, 32, 64]
        model.anchor_generator.offset = 0.25
        model.backbone._size_divisibility = 64
        then = dependencies(model, dicts, _recipe(), NAME)
        changed = {key for key in now if now[key] != then[key]}
        assert changed == {"strides", "anchor offset", "size divisibility"}

    @pytest.mark.parametrize(
        "augmentation",
        [
            lambda: T.RandomCrop("relative", (0.5, 0.5)),
            lambda: T.HFlipTransform(20),
            lambda: T.RandomApply(T.RandomBrightness(0.5, 2.0), prob=0.3),
            lambda: T.AugmentationList([T.RandomApply(T.RandomSaturation(0.5, 2.0))]),
        ],
        ids=["RandomCrop", "HFlipTransform", "RandomApply", "AugmentationList"],
    )
    def test_two_equal_recipes_are_described_alike(self, dicts, augmentation):
        both = [
            dependencies(tiny_retinanet(), dicts, mapper_of(augmentation()), NAME) for _ in "ab"
        ]
        assert both[0] == both[1]

    @pytest.mark.parametrize(
        "make",
        [
            lambda p: T.RandomFlip(p),
            lambda p: T.RandomCrop("relative", (p, p)),
            lambda p: T.RandomApply(T.RandomBrightness(0.5, 2.0), prob=p),
            lambda p: T.RandomApply(T.RandomCrop("relative", (p, p)), prob=0.5),
        ],
        ids=["RandomFlip", "RandomCrop", "RandomApply", "inside RandomApply"],
    )
    def test_two_recipes_that_differ_are_told_apart(self, dicts, make):
        one, other = (
            dependencies(tiny_retinanet(), dicts, mapper_of(make(p)), NAME)["augmentations"]
            for p in (0.5, 0.25)
        )
        assert one != other

    def test_a_missing_file_is_named_with_the_tool_that_writes_it(self, tmp_path):
        with pytest.raises(BadInput, match="none.json: no such file.*estimate_prior.py"):
            PriorEstimate.load(tmp_path / "none.json")

    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: text[: len(text) // 2],
            lambda text: "[1, 2]",
            lambda text: "{}",
            lambda text: text.replace('"num_foreground"', '"num_fg"'),
            lambda text: json.dumps({**json.loads(text), "num_foreground": 0}),
            lambda text: json.dumps({**json.loads(text), "num_valid": "many"}),
            lambda text: json.dumps({**json.loads(text), "depends_on": None}),
            lambda text: json.dumps({**json.loads(text), "depends_on": {}}),
        ],
        ids=[
            "cut off",
            "list",
            "no keys",
            "another key",
            "no foreground",
            "text for a number",
            "depends on null",
            "depends on nothing",
        ],
    )
    def test_a_broken_file_is_named(self, dicts, tmp_path, damage):
        path = tmp_path / "prior.json"
        _estimate(dicts).save(path)
        path.write_text(damage(path.read_text()))
        with pytest.raises(BadInput, match="prior.json: .*write it anew"):
            PriorEstimate.load(path, {"data set": NAME})

    def test_a_folder_in_place_of_a_file_is_named(self, tmp_path):
        with pytest.raises(BadInput, match="not a prior estimate"):
            PriorEstimate.load(tmp_path)


def test_the_prior_of_real_blood_cells_is_the_one_measured_before(monkeypatch):
    shared = ROOT.parent / "shared" / "data"
    data = Path(os.environ.get("DETECTRON2_DATASETS", shared))
    if not (data / "bccd").is_dir():
        pytest.skip(f"no {data / 'bccd'}; see BCCD in the README")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    cfg = load_config(str(ROOT / "configs/bccd/retinanet_R_18_FPN.py"))
    node = cfg.dataloader.train
    torch.manual_seed(0)
    estimate = estimate_prior(
        instantiate(cfg.model),
        load_dataset(node.dataset, cfg.model),
        instantiate(node.mapper),
        dataset_names(node.dataset),
        progress=False,
    )
    # A prototype counted 2.76e-3.
    assert estimate.prior == pytest.approx(2.76e-3, rel=0.05)
    assert list(estimate.per_class) == ["RBC", "WBC", "Platelets"]
