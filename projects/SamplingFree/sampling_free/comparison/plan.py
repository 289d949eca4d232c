"""What a comparison runs: every run is checked, with its config, before the first one starts."""

import contextlib
import io
import itertools
import os
from dataclasses import dataclass, replace

from omegaconf import DictConfig, ListConfig, OmegaConf

from ..config.load import load_config
from ..utils.errors import BadInput
from .spec import Run, config_digest
from .thresholds import score_thresholds, shared_settings, usual_settings

# Detectron2's own and the other heuristics: they are tested at their usual threshold too.
BASELINES = ("focal", "sampled", "ohem", "ghm")
MEASUREMENTS = 20  # of the gradients in a run
PICTURES = 4


@dataclass(frozen=True)
class Planned:
    """A run whose config has been read.

    Args:
        run (Run):
        folder (str): of its files.
        identity (dict): of :meth:`Run.identity`.
        facts (dict): what a record says of the config.
        extra (tuple[str]): overrides that do not change the result.
        usual (tuple[str]): overrides for a second evaluation, at the usual test threshold.
    """

    run: Run
    folder: str
    identity: dict
    facts: dict
    extra: tuple
    usual: tuple


def runs_of_variants(config: str, words: list[str], overrides: list[str]) -> list[Run]:
    """A run for each variant of a config, all with the test thresholds of the sampling-free one.

    Args:
        config: file.
        words: "focal", or "all_samples:model.prior=0.5,model.guide=2.0".
        overrides: "key=value", of all.

    Raises:
        BadInput: the config has no sampling-free form, or mistakes.
    """
    settings = shared_settings(quietly(load_config, config, overrides, variant="sampling_free"))
    runs = []
    for word in dict.fromkeys(words):
        variant, _, override = word.partition(":")
        shared = dict(overrides=tuple(overrides), test_settings=settings, watched=True)
        runs.append(Run(config, variant, override or None, **shared))
    return runs


def runs_of_configs(configs, vary, overrides) -> list[Run]:
    """A run for each config and each override, None for none, of ``vary``."""
    pairs = itertools.product(configs, vary)
    return [Run(config, None, vary, tuple(overrides)) for config, vary in pairs]


def with_rates(runs, rates) -> list[Run]:
    """Each run at each learning rate; None for the config's own."""
    return [replace(run, learning_rate=rate) for run in runs for rate in rates]


def with_seeds(runs, seeds, splits=(None, None), choosing=False) -> list[Run]:
    """Each run with each seed on these splits; ``choosing`` marks those that choose a rate."""
    changes = {"splits": tuple(splits), "choosing": choosing}
    return [replace(run, seed=seed, **changes) for run in runs for seed in seeds]


def plan(runs: list[Run], folder: str, pictures: int = PICTURES) -> list[Planned]:
    """Reads the config of each run.

    Args:
        runs:
        folder: the runs get folders in it.
        pictures: of a run that is watched.

    Raises:
        BadInput: an unknown variant, a misspelt key, two runs of one name.
    """
    planned = [_planned(run, folder, pictures) for run in dict.fromkeys(runs)]
    by_name = {}
    for one in planned:
        other = by_name.setdefault(one.run.name, one)
        if other is not one:
            raise BadInput(
                f"{other.run.config} and {one.run.config}: both would be called {one.run.name}; "
                "give the files different names"
            )
    return planned


def _planned(run, folder, pictures):
    cfg = quietly(load_config, run.config, run.changes(), variant=run.variant)
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    if isinstance(names, ListConfig) and len(names) > 1:
        raise BadInput(
            f"{run.config}: has {len(names)} test sets, and runs are compared on one: give the "
            "override dataloader.test.dataset.names=NAME"
        )
    digest = config_digest(cfg)
    extra = ["train.num_pictures=0"]
    if run.watched and not run.choosing:
        period = max(1, cfg.train.max_iter // MEASUREMENTS)
        # The writers keep the newest measurement alone: they write before the next one.
        extra = [f"train.monitor_period={period}", f"train.log_period={period}"]
        extra.append(f"train.num_pictures={pictures}")
    is_evaluated = cfg.dataloader.get("evaluator") is not None
    is_baseline = run.variant in BASELINES and not run.choosing and is_evaluated
    return Planned(
        run,
        os.path.join(folder, run.folder(digest)),
        run.identity(digest),
        _facts(cfg),
        ("train.expected_results=[]", *extra),  # numbers are wanted, no verdict
        usual_settings(cfg) if is_baseline else (),
    )


def _facts(cfg):
    thresholds = list(score_thresholds(cfg).values())
    return {
        "test_score_thresh": thresholds[0] if len(thresholds) == 1 else thresholds or None,
        "max_iter": cfg.train.max_iter,
        "batch_size": cfg.dataloader.train.get("total_batch_size", None),
        "optimizer_lr": cfg.optimizer.get("lr", None),
        "data_set": {
            part: _name(cfg.dataloader[part].get("dataset", None))
            for part in ("train", "test")
            if part in cfg.dataloader
        },
        "on_gpu": str(cfg.train.device).startswith("cuda"),
    }


def _name(dataset):
    """The names of a data set without registering it."""
    names = dataset.get("names", None) if isinstance(dataset, DictConfig) else None
    if isinstance(names, DictConfig):
        names = names.get("name", None)
    return None if names is None else str(names)


def quietly(function, *args, **kwargs):
    """The result of a function without what it prints, as the changes of a conversion."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args, **kwargs)
