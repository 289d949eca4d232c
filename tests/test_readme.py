"""What the documentation says can be run, can be run."""

import json
import re
import shutil
from pathlib import Path

import pytest
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts

from sampling_free.config import TRAIN_DEFAULTS, load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "projects/SamplingFree/README.md").read_text()


def test_every_file_that_the_readme_names_exists():
    named = set(re.findall(r"(?<![\w/.])((?:configs|tools|projects)/[\w/.]*[\w/])", README))
    named |= set(re.findall(r"\]\((?!http)([^)#]+)\)", README))
    named -= {"configs/mine.py"}
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


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
