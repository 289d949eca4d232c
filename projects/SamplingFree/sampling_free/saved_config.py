"""The config.yaml of a run, which repeats it."""

import yaml
from omegaconf import OmegaConf


def save_in_order(cfg, path):
    """Writes what Detectron2's ``default_setup`` has saved again, with the keys in their order.

    Detectron2 sorts them, and the parts of a model draw their random weights one after another.

    Args:
        cfg (DictConfig):
        path (str): a YAML file, of ``LazyConfig.save``; one that cannot be loaded stays as it is.
    """
    try:
        with open(path) as f:
            saved = yaml.unsafe_load(f)
    except Exception:  # of objects that YAML has no form for; Detectron2 has warned
        return
    saved = _in_order(saved, OmegaConf.to_container(cfg, resolve=False))
    with open(path, "w") as f:
        yaml.dump(
            saved, f, sort_keys=False, default_flow_style=None, allow_unicode=True, width=9999
        )


def _in_order(saved, like):
    if isinstance(like, dict):
        return {key: _in_order(saved[key], value) for key, value in like.items()}
    if isinstance(like, list):
        return [_in_order(a, b) for a, b in zip(saved, like)]
    return saved
