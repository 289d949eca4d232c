"""Several test sets: each is evaluated by itself, one after another, as Detectron2's trainers do.

Results then have the name of the set in front, as in ``NAME/bbox/AP``. What can be of one set alone
is of the first: the pictures, the threshold of best F1, and a metric without a name in front.
"""

import os

from detectron2.config import instantiate
from omegaconf import DictConfig, ListConfig

from ..data.datasets import dataset_names, evaluators_of
from ..utils.errors import BadInput
from .evaluators import give_output_dirs


def each_test_set(cfg: DictConfig) -> dict[str, DictConfig]:
    """The config once for each test set.

    Args:
        cfg: a LazyConfig; ``dataloader.test.dataset.names`` may be a list.

    Returns:
        By name, in order; copies in which there is no other test set, with
        the evaluators that are for this one, each with an output folder of its own if there are
        several. ``cfg`` itself where the test set is one that has no list, with "" for no name.

    Raises:
        BadInput: a test set has no evaluator, or there is no test set.
    """
    if "test" not in cfg.dataloader:
        raise BadInput("dataloader.evaluator: there is no dataloader.test to evaluate on")
    node = cfg.dataloader.test.dataset
    names = dataset_names(node)
    if isinstance(instantiate(node.get("names", None)), (str, type(None))):
        return {(names or [""])[0]: cfg}
    return {name: _with_one(cfg, name, len(names) > 1) for name in names}


def first_test_set(cfg: DictConfig) -> DictConfig:
    """The first of :func:`each_test_set`."""
    return next(iter(each_test_set(cfg).values()))


def metric_of(cfg: DictConfig, metric: str | None) -> str | None:
    """The name that ``train.best_metric`` has in the results; without a set, of the first."""
    names = _several(cfg) if metric else []
    if not names or metric.startswith(tuple(f"{name}/" for name in names)):
        return metric
    return f"{names[0]}/{metric}"


def by_task(cfg: DictConfig, results: dict) -> dict:
    """Results by task, of which the rows of ``train.expected_results`` are.

    Args:
        cfg: of the evaluation.
        results: task -> metric -> value; of several test sets, by their names.

    Returns:
        Task -> metric -> value; of several sets "bbox" is of the first, and "NAME/bbox" of
        each.
    """
    if not _several(cfg):
        return results
    first = next(iter(results.values()), {})
    named = {f"{name}/{task}": x for name, tasks in results.items() for task, x in tasks.items()}
    return {**first, **named}


def _several(cfg):
    """The names of the test sets if there are several, and they are evaluated; else none."""
    names = list(each_test_set(cfg)) if cfg.dataloader.get("evaluator") else []
    return names if len(names) > 1 else []


def _with_one(cfg, name, is_one_of_several):
    one = cfg.copy()
    one.dataloader.test.dataset.names = name
    nodes = evaluators_of(one.dataloader.get("evaluator"))
    for i in reversed(range(len(nodes))):
        # What refers to the names has this one by now; a list of one's own may have it, too.
        given = instantiate(nodes[i].get("dataset_name", name))
        if name not in ([given] if isinstance(given, str) else given):
            _leave_out(one.dataloader, i)
        elif not isinstance(given, str):
            nodes[i].dataset_name = name
    if nodes and not evaluators_of(one.dataloader.get("evaluator")):
        raise BadInput(
            f"dataloader.evaluator: none is for the test set {name!r}; write "
            'dataset_name="${dataloader.test.dataset.names}" for one that is for all of them'
        )
    if is_one_of_several:
        give_output_dirs(one)
        for node in evaluators_of(one.dataloader.get("evaluator")):
            if node.get("output_dir"):
                node.output_dir = os.path.join(node.output_dir, name)
    return one


def _leave_out(dataloader, i):
    # In place, as relative references in a node depend on where it is.
    if isinstance(dataloader.evaluator, ListConfig):
        del dataloader.evaluator[i]
    else:
        dataloader.evaluator = None
