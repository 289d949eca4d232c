"""What the documentation says can be run, can be run."""

import json
import re
import shutil
from pathlib import Path

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg, instantiate
from detectron2.data import get_detection_dataset_dicts

from sampling_free import add_sampling_free_config, convert
from sampling_free.config.convert import VARIANTS
from sampling_free.config.load import TRAIN_DEFAULTS, load_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "projects/SamplingFree/README.md").read_text()
GUIDE = (ROOT / "docs" / "convert.md").read_text()


def test_every_file_that_the_readme_names_exists():
    named = set(re.findall(r"(?<![\w/.])((?:configs|tools|projects)/[\w/.]*[\w/])", README))
    named |= set(re.findall(r"\]\((?!http)([^)#]+)\)", README))
    named -= {"configs/mine.py"}
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "path", [*(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))), "MODEL_ZOO.md"]
)
def test_every_link_of_the_other_pages_leads_somewhere(path):
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / path).read_text())
    assert links
    assert [x for x in links if not (ROOT / path).parent.joinpath(x).exists()] == []


def test_every_variant_is_in_the_documentation():
    page = (ROOT / "docs" / "imbalance.md").read_text()
    assert VARIANTS.keys() <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_the_model_zoo_has_every_config_of_coco_and_voc():
    listed = set(re.findall(r"configs/[\w/]+\.py", (ROOT / "MODEL_ZOO.md").read_text()))
    listed -= {"configs/common/authors.py"}
    whole = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("configs/*/*.py")}
    whole = {p for p in whole if "/common/" not in p}
    assert len(listed) > 40
    assert listed - whole == set()
    assert {p for p in whole - listed if "retinanet" not in p} == set()  # BCCD's is in the README


# The table of the guide -> a file of the zoo that it can be tried on.
BY_NAME = {
    "SamplingFreeRetinaNet": ["COCO-Detection/retinanet_R_50_FPN_1x.yaml"],
    "SamplingFreeRPN": ["COCO-Detection/rpn_R_50_FPN_1x.yaml"],
    "SamplingFreeStandardROIHeads": ["COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml"],
    "SamplingFreeCascadeROIHeads": ["Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", "SamplingFreeRPN"],
}


@pytest.mark.parametrize("name", BY_NAME)
def test_what_the_guide_sets_by_hand_is_what_convert_sets(name):
    rows = [row.split("|")[1:3] for row in GUIDE.splitlines() if re.match(r"\| `\w+.*: Sampl", row)]
    assert len(rows) == 4
    base, *others = BY_NAME[name]
    cfg = get_cfg()
    add_sampling_free_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(base))
    expected = convert(cfg, quiet=True)
    for wanted in (name, *others):
        (row,) = [r for r in rows if f"`{wanted}`" in r[0] or f": {wanted}`" in r[0]]
        key = re.match(r" `([\w.]+):", row[0])[1]
        pairs = [(key, wanted), *re.findall(r"`([\w.]+): ([\d.]+)`", row[1])]
        for key, value in pairs:
            cfg.merge_from_list([f"MODEL.{key}", value])
    assert cfg == expected


def test_the_example_for_own_data_is_ten_lines_and_trains_on_a_coco_file(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    statements = [line for line in block.splitlines() if re.match(r"\S", line) and line != ")"]
    assert len(statements) <= 10
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "mine.py").write_text(block)
    for split in ("train", "val"):
        (tmp_path / "mine" / split).mkdir(parents=True)
        coco = {
            "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 9}],
            "categories": [{"id": k, "name": f"c{k}"} for k in range(1, 5)],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5], "area": 25}
                | {"iscrowd": 0}
            ],
        }
        (tmp_path / "mine" / f"{split}.json").write_text(json.dumps(coco))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = load_config(str(tmp_path / "configs" / "mine.py"))
    (record,) = get_detection_dataset_dicts(instantiate(cfg.dataloader.train.dataset.names))
    assert record["annotations"][0]["category_id"] == 2
    assert cfg.model.num_classes == 4


@pytest.mark.parametrize("key", TRAIN_DEFAULTS)
def test_every_key_that_the_trainer_adds_is_documented(key):
    assert re.search(rf"`{key}\b", PAGE), key
