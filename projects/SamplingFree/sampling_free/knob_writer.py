"""The three lists of knobs.py, and how a number gets into one: under the key that a user changes.

A LazyConfig calls it by the path of its node, a YAML file by a key of Detectron2's or of
``MODEL.SAMPLING_FREE``.
"""

from typing import NamedTuple

from omegaconf import ListConfig, OmegaConf

from .config.cfg_node import meta_architecture
from .method.guides import ConstantGuide
from .utils.lazy import target_of


class Knob(NamedTuple):
    """One number.

    Attributes:
        key (str): what a user would change; of what no config sets, the path of the attribute.
        value (object): a number, a word or several.
        what (str): in a few words.
    """

    key: str
    value: object
    what: str


class Knobs(NamedTuple):
    """Lists of ``Knob``."""

    knobs: list
    constants: list
    test_settings: list


class KnobWriter:
    """Fills the lists. ``where`` is the path of a part's node in a LazyConfig.

    Attributes:
        lists (Knobs):
        yaml (DictConfig or None): the YAML keys; None for a LazyConfig.
    """

    def __init__(self, cfg):
        self.cfg = cfg
        self.yaml = cfg.cfg if target_of(cfg.model) is meta_architecture else None
        self.lists = Knobs([], [], [])

    def add(self, block, where, name, yaml_key, value, what):
        """Args: yaml_key (str or None): None where the YAML file has no such key."""
        key = f"{where}.{name}" if self.yaml is None or yaml_key is None else yaml_key
        value = tuple(value) if isinstance(value, (list, ListConfig)) else value
        block.append(Knob(key, value, what))

    def add_knobs(self, where, module, yaml_node, whats):
        """
        Args:
            module (Module): its attributes are called like their keys.
            yaml_node (str or None): None where a YAML file has no such keys.
            whats (dict[str, str]): by attribute.
        """
        for name, what in whats.items():
            key = f"{yaml_node}.{name.upper()}"
            key = key if OmegaConf.select(self.cfg, f"cfg.{key}") is not None else None
            self.add(self.lists.knobs, where, name, key, getattr(module, name), what)

    def add_weight(self, where, name, yaml_key, value, what, constants=()):
        """The weight of a loss: a constant if it is one of those, a knob if it is not 1."""
        if value in constants:
            if isinstance(constants, dict):
                what = f"{what}: {constants[value]}"
            self.add(self.lists.constants, where, name, yaml_key, value, what)
        elif value != 1:
            self.add(self.lists.knobs, where, name, yaml_key, value, f"hand-set {what}")

    def add_loss_weights(self, where, module, cls, loc, yaml_keys, constants):
        """``loss_weight`` of the RPN and of a box predictor.

        Args:
            cls, loc (str): names of the two losses.
            yaml_keys (tuple[str or None, str]): of both losses, and of the box loss.
            constants (dict[float, str]): weights of the box loss that belong to the method.
        """
        cls_what, loc_what = "weight of the classification loss", "weight of the box loss"
        key, weights = "loss_weight", module.loss_weight
        if self.yaml is not None:
            both, box = yaml_keys
            if both is not None:
                value = OmegaConf.select(self.yaml, both)
                self.add_weight(where, key, both, value, "weight of both losses")
            value = OmegaConf.select(self.yaml, box)
            self.add_weight(where, key, box, value, loc_what, constants)
            return
        one = OmegaConf.select(self.cfg, f"{where}.{key}")
        if isinstance(one, (int, float)):
            self.add_weight(where, key, None, one, "weight of both losses", constants)
            return
        # Under a guide that of the classification loss has no effect.
        if isinstance(getattr(module, "guide", None), (type(None), ConstantGuide)):
            self.add_weight(where, f"{key}.{cls}", None, weights.get(cls, 1.0), cls_what)
        self.add_weight(where, f"{key}.{loc}", None, weights.get(loc, 1.0), loc_what, constants)
