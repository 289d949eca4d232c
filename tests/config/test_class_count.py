"""A model with another number of classes than its data is refused, whatever its class."""

import pytest
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from omegaconf import OmegaConf

from sampling_free.config.families import DENSE, GHM, OHEM
from sampling_free.data.datasets import load_dataset, num_classes_of
from sampling_free.utils.errors import BadInput

RETINANETS = [*DENSE, *DENSE.values(), OHEM[RetinaNet], GHM[RetinaNet]]
NODES = {x.__name__: "RETINANET" for x in RETINANETS if x is not FCOS}  # no FCOS in YAML
NODES |= {x.__name__: "ROI_HEADS" for x in (GeneralizedRCNN, PanopticFPN)}


def test_these_are_all_that_yaml_configs_name():
    assert len(NODES) == 11
    ours = {n for n, x in META_ARCH_REGISTRY if x.__module__.startswith("sampling_free")}
    assert ours == NODES.keys() - {"RetinaNet", "GeneralizedRCNN", "PanopticFPN"}


@pytest.mark.parametrize("name", NODES)
def test_another_number_of_classes_is_refused_in_yaml(name, registered):
    counts = {node: {"NUM_CLASSES": 3} for node in set(NODES.values())}
    counts[NODES[name]]["NUM_CLASSES"] = 7
    model = OmegaConf.create({"cfg": {"MODEL": {"META_ARCHITECTURE": name, **counts}}})
    assert num_classes_of(model) == 7
    dataset = OmegaConf.create(
        {"_target_": "detectron2.data.get_detection_dataset_dicts", "names": registered}
    )
    with pytest.raises(BadInput, match=f"MODEL.{NODES[name]}.NUM_CLASSES"):
        load_dataset(dataset, model)
