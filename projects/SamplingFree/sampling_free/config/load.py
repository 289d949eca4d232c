"""Config files and overrides, read strictly: a misspelt key is an error.

LazyConfigs (.py) take ``key=value``, Detectron2's YAML files ``KEY VALUE`` and ``key=value``.

Detectron2's ``apply_overrides`` accepts ``train.max_itr=5`` in silence.
"""

import builtins
import contextlib
import difflib
import os
import re
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, LazyConfig
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..detectors.bias import ClassifierBias, PriorBias
from ..detectors.thresholds import PriorThreshold
from ..utils.errors import BadInput
from ..utils.lazy import call_parameters, target_of
from .cfg_node import is_cfg_node_file, lazy_from_cfg_node, read_cfg_node
from .convert import as_variant
from .zoo import model_zoo

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}  # of train.amp
# Keys of `train` beyond those of Detectron2's common/train.py.
TRAIN_DEFAULTS = dict(
    seed=0,  # of weights, order and augmentations; -1: none
    amp=dict(enabled=False, dtype="float16"),  # or "bfloat16"; on CPU too
    clip_gradients=dict(enabled=False, clip_type="norm", clip_value=1.0, norm_type=2.0),
    best_metric="",  # e.g. "bbox/AP50": keep the best checkpoint of the evaluations
    expected_results=[],  # [[task, metric, value, tolerance]]: checked after training
    prior_file="",  # read this estimate instead of measuring the prior
    reset_prior=False,  # give a head that came with init_checkpoint the prior's bias
    num_pictures=0,  # detections beside ground truth, drawn at the end
    monitor_period=0,  # iterations between two measurements of the gradients; 0: none
    skip_nonfinite=0,  # batches in a row that may be left out, if their loss is not finite
    reference_batch_size=0,  # that the learning rate is for, which is scaled to the batch; 0: not
    allow_pickle=False,  # load weights that could run code; --allow-pickle sets it
)
FROM_ZERO = {  # what to give instead of a value that is none
    "monitor_period": "a number of iterations, or 0 for no measurements",
    "skip_nonfinite": "a number of batches in a row, or 0 to stop at the first",
    "reference_batch_size": "the whole number of images that optimizer.lr was chosen for, or 0 to "
    "take it as it is",
}
# Keys that take a number or a word, and whose nodes know which.
WORDS = {
    "prior": PriorBias,
    "guide": ClassifierBias,
    "test_score_thresh": (PriorThreshold, ClassifierBias),
}


# Keys of a CfgNode that a variant sets and a user may want otherwise.
SET_BY_VARIANTS = ("SCORE_THRESH_TEST", "SAMPLING_FREE.GUIDE")


def load_config(
    path: str,
    overrides: Sequence[str] = (),
    sampling_free: bool = False,
    variant: str | None = None,
) -> DictConfig:
    """Reads a config, adds what `train` lacks, applies overrides and checks every key.

    Args:
        path: a LazyConfig file (.py, or .yaml as saved by a run), a YAML config of
            Detectron2, or the name of a config of its model zoo.
        overrides: "key=value" in Hydra's grammar; for a YAML config of Detectron2
            also pairs "KEY", "VALUE".
        sampling_free: short for ``variant="sampling_free"``.
        variant: of ``VARIANTS`` to turn it into; a LazyConfig before the
            overrides, a YAML config after.

    Returns:
        A YAML config of Detectron2 as a LazyConfig.

    Raises:
        BadInput: for a missing or broken file, for an unknown variant and for an unknown key;
            suggests the nearest.
    """
    if sampling_free and variant not in (None, "sampling_free"):
        raise BadInput(f"--sampling-free and --variant {variant}: give one of the two")
    variant = "sampling_free" if sampling_free else variant
    path = find_config(path)
    if is_cfg_node_file(path):
        node = read_cfg_node(path)
        pairs, overrides = _split_overrides(node, overrides)
        _apply_pairs(node, pairs)
        if variant is not None:
            node = _naming_file(path, as_variant, node, variant)
            _apply_pairs(node, [x for x in pairs if x[0].endswith(SET_BY_VARIANTS)])
        cfg = lazy_from_cfg_node(node)
    else:
        cfg = _load(path)
        if not isinstance(cfg, DictConfig) or cfg._is_none():
            raise BadInput(f"{path}: empty")
        if variant is not None:
            cfg = _naming_file(path, as_variant, cfg, variant)
    for key in ("model", "dataloader", "optimizer", "lr_multiplier", "train"):
        if key not in cfg:
            raise BadInput(f"{path}: has no {key!r}; is it a whole LazyConfig, not a part of one?")
    if isinstance(cfg.dataloader.get("test"), ListConfig):
        raise BadInput(
            f"{path}: dataloader.test is a list: write one loader, and the list into "
            "dataloader.test.dataset.names; its sets are evaluated one after another"
        )
    train = model_zoo.get_config("common/train.py").train
    known = OmegaConf.merge(train, TRAIN_DEFAULTS)
    _check_spelling(cfg.train, known, "train")
    _check_spelling(cfg.dataloader, dict.fromkeys(("train", "test", "evaluator")), "dataloader")
    cfg.train = OmegaConf.merge(known, cfg.train)
    for override in overrides:
        _apply(cfg, override)
    _expand_home(cfg)
    _check_calls(cfg)
    _check_train(cfg.train)
    return cfg


def _naming_file(path, function, *args):
    """``function(*args)``; a line of its errors names the file."""
    try:
        return function(*args)
    except BadInput as e:
        raise BadInput(f"{path}: {e}") from None


def find_config(path: str) -> str:
    """Finds the config file of that name, or else the one of Detectron2's model zoo."""
    if not path:
        raise BadInput("--config-file is missing, e.g. --config-file configs/demo/retinanet.py")
    path = os.path.expanduser(path)
    if PathManager.isfile(path):
        return path
    try:
        return model_zoo.get_config_file(path)
    except RuntimeError:
        raise BadInput(f"{path}: no such config file{_suggest_file(path)}") from None


def _split_overrides(node, overrides):
    """Those of a CfgNode, "KEY", "VALUE" or "KEY=VALUE", and the others, "key=value"."""
    pairs, others, rest = [], [], list(overrides)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if equals and key.split(".")[0] in node:
            pairs.append((key, value))
        elif equals:
            others.append(word)
        elif not rest:
            raise BadInput(f"{word}: its value is missing; write {word} VALUE")
        else:
            pairs.append((word, rest.pop(0)))
    return pairs, others


def _apply_pairs(node, pairs):
    for key, value in pairs:
        parent, done = node, []
        for part in key.split("."):
            if not isinstance(parent, CfgNode) or part not in parent:
                known = list(parent) if isinstance(parent, CfgNode) else []
                raise _unknown_key(key, part, done, known, part.upper())
            parent = parent[part]
            done.append(part)
        if isinstance(parent, CfgNode):
            raise BadInput(f"{key}: is a node; give one of its keys: {', '.join(parent)}")
        try:
            node.merge_from_list([key, value])
        except (ValueError, AssertionError, KeyError) as e:
            raise BadInput(f"{key} {value}: {e}") from None


def _unknown_key(key, part, done, known, spelled):
    """The error for a part of a key that is not known behind those that are done."""
    near = difflib.get_close_matches(spelled, known, 1, cutoff=0.5)
    hint = f"did you mean {'.'.join([*done, near[0]])}?" if near else f"known: {known}"
    return BadInput(f"{key}: unknown key {part!r} in {'.'.join(done) or 'the config'}; {hint}")


def _load(path):
    # LazyConfig leaves the import function patched when a config raises.
    original_import = builtins.__import__
    try:
        with _may_register_again(path):
            return LazyConfig.load(path)
    except BadInput:
        raise
    except Exception as e:
        reason = " ".join(f"{e.__cause__ or e}".split())
        raise BadInput(f"{path}: {type(e.__cause__ or e).__name__}: {reason}") from e
    finally:
        builtins.__import__ = original_import


_of_configs = {}  # data sets that config files have registered: name -> function


@contextlib.contextmanager
def _may_register_again(path):
    """Lets a config file register data sets each time that it is read in this process.

    Other files that it imports in Detectron2's way are read again too, those that Python imports
    are not: what nobody registers again comes back.
    """
    of_others = set(DatasetCatalog) - set(_of_configs)
    before = {name: DatasetCatalog.pop(name) for name in _of_configs if name in DatasetCatalog}
    try:
        yield
        for name, function in before.items():
            if _file_of(DatasetCatalog.setdefault(name, function)) != _file_of(function):
                raise BadInput(
                    f"{path}: registers the data set {name!r}, as {_file_of(function)} does: give "
                    "one of them another name"
                )
    finally:
        for name in set(DatasetCatalog) - of_others:
            _of_configs[name] = DatasetCatalog[name]
        DatasetCatalog.update({k: f for k, f in before.items() if k not in DatasetCatalog})


def _file_of(function):
    """The file that a registered function was written in; None where Python does not tell."""
    function = getattr(function, "function", function)  # of a checked source
    return getattr(getattr(function, "__code__", None), "co_filename", None)


def _check_spelling(node, known, where):
    """A key of a file that resembles a known one is a misspelt one; others may be a user's own."""
    for key, value in node.items_ex(resolve=False):  # what is missing may yet be overridden
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), 1, cutoff=0.75)
            if near:
                raise BadInput(f"{where}.{key}: unknown key; did you mean {where}.{near[0]}?")
        elif isinstance(value, DictConfig) and isinstance(known[key], DictConfig):
            _check_spelling(value, known[key], f"{where}.{key}")


def _check_train(train):
    if os.path.exists(train.output_dir) and not os.path.isdir(train.output_dir):
        raise BadInput(f"train.output_dir={train.output_dir}: is a file, not a folder")
    try:
        torch.device(train.device)
    except RuntimeError:
        raise BadInput(f"train.device={train.device!r}: known are 'cuda' and 'cpu'") from None
    if train.clip_gradients.clip_type not in ("norm", "value"):
        raise BadInput(
            f"train.clip_gradients.clip_type={train.clip_gradients.clip_type!r}: known are "
            "'norm' and 'value'"
        )
    if train.amp.dtype not in DTYPES:
        raise BadInput(f"train.amp.dtype={train.amp.dtype!r}: known are {list(DTYPES)}")
    for key in ("max_iter", "log_period", "checkpointer.period"):
        value = OmegaConf.select(train, key)
        if not isinstance(value, int) or value < 1:
            raise BadInput(f"train.{key}={value!r}: give a whole number from 1 up")
    for key, way_out in FROM_ZERO.items():
        if type(train[key]) is not int or train[key] < 0:
            raise BadInput(f"train.{key}={train[key]!r}: give {way_out}")
    if not isinstance(train.allow_pickle, bool):
        raise BadInput(f"train.allow_pickle={train.allow_pickle!r}: give True or False")
    for row in train.expected_results:
        if not isinstance(row, (list, tuple, ListConfig)) or len(row) != 4:
            raise BadInput(
                f"train.expected_results: {row} is not [task, metric, value, tolerance], "
                "e.g. [bbox, AP50, 80, 5]"
            )


def _expand_home(node):
    """Puts the home folder in the place of a ~ at the beginning of any text, in place."""
    keys = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for key in keys if not node._is_none() else ():
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        value = node[key]
        if isinstance(value, (DictConfig, ListConfig)):
            _expand_home(value)
        elif isinstance(value, str) and value.startswith("~"):
            node[key] = os.path.expanduser(value)


def _suggest_file(path):
    folder = os.path.dirname(path) or "."
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    near = difflib.get_close_matches(os.path.basename(path), names, 1)
    return f"; did you mean {os.path.join(folder, near[0])}?" if near else ""


def _apply(cfg, override):
    key, equals, value = override.partition("=")
    if not equals:
        raise BadInput(f"{override!r} is no override: write key=value, e.g. train.max_iter=100")
    key = key.lstrip("+")
    _check_key(cfg, key)
    before = _select(cfg, key)
    try:
        LazyConfig.apply_overrides(cfg, [override])
    except Exception as e:  # Hydra's parser and OmegaConf have many of their own
        if isinstance(before, str) and value[:1] not in ("'", '"', "[", "{"):
            OmegaConf.update(cfg, key, value)  # a path, with a ~ or a = in it
            return
        reason = str(e).strip().splitlines()[0]
        raise BadInput(f"{override!r} cannot be applied: {reason}") from None
    after = _select(cfg, key)
    if isinstance(before, (int, float)) and isinstance(after, str) and not _takes_words(cfg, key):
        raise BadInput(f"{override!r}: {key} is a number, now {before!r}")


def _takes_words(cfg, key):
    """Whether what a key belongs to knows numbers and words there, and checks them itself."""
    node, _, last = key.rpartition(".")
    target = target_of(OmegaConf.select(cfg, node)) if last in WORDS else None
    return isinstance(target, type) and issubclass(target, WORDS[last])


def _check_key(cfg, key):
    node, done, parts = cfg, [], key.split(".")
    for part in parts:
        where = ".".join(done) or "the config"
        if isinstance(node, ListConfig):
            if not part.isdigit() or int(part) >= len(node):
                raise BadInput(f"{key}: {where} is a list of {len(node)}, {part!r} is no index")
        elif isinstance(node, DictConfig):
            known = [str(k) for k in node]
            if part not in node:
                parameters = call_parameters(node)
                if parameters is None or part in parameters:
                    return
                known = [k for k in known if k != "_target_"] + sorted(parameters)
                raise _unknown_key(key, part, done, known, part)
        else:
            raise BadInput(f"{key}: {where} is the value {node!r} and has no keys")
        done.append(part)
        if len(done) < len(parts):  # what the last one refers to does not matter any more
            index = int(part) if isinstance(node, ListConfig) else part
            node = _child(node, index, ".".join(done[:-1]))


def _check_calls(node, where=""):
    """Every key of every call must be a parameter of what is called."""
    if isinstance(node, ListConfig):
        children = ((i, _child(node, i, where)) for i in range(len(node)))
    elif isinstance(node, DictConfig):
        parameters = call_parameters(node) if "_target_" in node else None
        for key in node if parameters is not None else ():
            if key != "_target_" and key not in parameters:
                near = difflib.get_close_matches(str(key), parameters, 1)
                raise BadInput(
                    f"{where}.{key}: no parameter of {node['_target_']}"
                    + (f"; did you mean {near[0]}?" if near else f"; known: {sorted(parameters)}")
                )
        children = ((k, _child(node, k, where)) for k in node)
    else:
        return
    for key, child in children:
        _check_calls(child, f"{where}.{key}".lstrip("."))


def _child(node, key, where):
    """A child; what an interpolation refers to is resolved, so that a broken one is named."""
    try:
        return node[key]
    except OmegaConfBaseException as e:
        full = f"{where}.{key}".lstrip(".")
        reason = _missing_reference(node, key, where.split(".")) or e.msg
        raise BadInput(f"{full}: {reason}; set {full}") from None


def _missing_reference(node, key, where):
    """What a value that is one ${...} refers to, and what is there instead; None of any other."""
    reference = re.fullmatch(r"\$\{(\.*)([\w.]+)\}", str(node._get_node(key)._value()))
    if not reference:
        return None
    dots, path = reference.groups()
    path = path.split(".")
    if dots:
        path = [*where[: len(where) - len(dots) + 1], *path]
    for length in range(len(path) - 1, 0, -1):
        known = ".".join(path[:length])
        there = _select(node._get_root(), known)
        if there is not None:
            is_node = isinstance(there, (DictConfig, ListConfig))
            if is_node and path[length] in there:
                return None
            what = "" if is_node else f" is now {getattr(there, '__name__', repr(there))} and"
            return f"refers to {'.'.join(path)}, but {known}{what} has no {path[length]!r}"
    return f"refers to {'.'.join(path)}, which is not there"


def _select(cfg, key):
    """The value of a key; None also of one that refers to nothing."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None
