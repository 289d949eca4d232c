"""One run of a comparison: what it is, what it is called, and the command that does it."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from omegaconf import DictConfig, OmegaConf

# What makes two runs one, beside the digest of the whole config; the rest is how it was spelt.
SAME = ("variant", "override", "learning_rate", "seed", "train_split", "test_split", "digest")
SPELLING = ("config", "overrides")
# Keys of `train` younger than the first records, which at these values change nothing.
YOUNGER = {"skip_nonfinite": 0, "allow_pickle": False, "reference_batch_size": 0}


@dataclass(frozen=True)
class Run:
    """A training with its evaluation.

    Args:
        config (str): file.
        variant (str or None): of ``sampling_free.VARIANTS``; None for the config
            as it is.
        override (str or None): "key=value" of this variant alone, several with commas between.
        overrides (tuple[str]): "key=value", of all runs.
        test_settings (tuple[str]): "key=value", the test score thresholds that all variants share.
        learning_rate (float or None): None for the config's own.
        seed (int):
        splits (tuple): names of the training and the test split; None for the config's own.
        choosing (bool): it only chooses a learning rate.
        watched (bool): with pictures and gradient magnitudes, for a report.
    """

    config: str
    variant: Optional[str] = None
    override: Optional[str] = None
    overrides: tuple = ()
    test_settings: tuple = ()
    learning_rate: Optional[float] = None
    seed: int = 0
    splits: tuple = (None, None)
    choosing: bool = False
    watched: bool = False

    @property
    def name(self):
        """str: how its folder begins; what a folder or an override cannot bear is replaced."""
        stem = os.path.splitext(os.path.basename(self.config))[0]
        rate = self.learning_rate and f"lr{self.learning_rate}"
        tags = [stem, self.variant, slug(self.override), rate, f"seed{self.seed}", *self.splits]
        return "_".join(str(t) for t in tags if t is not None)

    @property
    def title(self):
        """str: for the progress display."""
        what = self.variant or self.config
        what += f":{self.override}" if self.override else ""
        rate = "" if self.learning_rate is None else f" rate {self.learning_rate:g}"
        return f"{what}{rate} seed {self.seed}"

    def changes(self):
        """list[str]: the overrides, all but the output folder; later ones win."""
        changes = [*self.overrides, *self.test_settings]
        changes += split_overrides(self.override)
        if self.learning_rate is not None:
            changes.append(f"optimizer.lr={self.learning_rate}")
        changes.append(f"train.seed={self.seed}")
        for part, split in zip(("train", "test"), self.splits):
            if split is not None:
                node = f"dataloader.{part}.dataset.names"
                changes += [f"{node}.split={split}", f"{node}.name=compare_{split}"]
        return changes

    def arguments(self, extra: Sequence[str] = ()):
        """list[str]: those of train_net.py.

        Args:
            extra: "key=value", behind the others.
        """
        variant = ["--variant", self.variant] if self.variant else []
        return ["--config-file", self.config, *variant, *self.changes(), *extra]

    def folder(self, digest: str):
        """str: the name of its folder; runs of other settings have others.

        Args:
            digest: of :func:`config_digest`.
        """
        return f"{self.name}_{digest[:6]}"

    def identity(self, digest: str):
        """dict: what a record says of what was run, for :func:`is_record_of`.

        Args:
            digest: of :func:`config_digest`.
        """
        return {
            "config": self.config,
            "variant": self.variant,
            "override": self.override,
            "overrides": list(self.overrides),
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "train_split": self.splits[0],
            "test_split": self.splits[1],
            "digest": digest,
        }


def split_overrides(text: str | None) -> list[str]:
    """The overrides in "a=1,b=[1,2]": a comma ends one if another key follows.

    Args:
        text:
    """
    return re.split(r",(?=[\w.+~]+=)", text) if text else []


def slug(text):
    """``text`` for a name of a folder: no = in it, and a digest where more had to be replaced."""
    if text is None:
        return None
    plain = text.replace("=", "-")
    safe = re.sub(r"[^\w.-]", "-", plain)[:80]
    return safe if safe == plain else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def is_record_of(record: dict, identity: dict):
    """Whether a record is of this run.

    One of before has no digest: then the config's path and all overrides must be the same.

    Args:
        record:
        identity: of :meth:`Run.identity`.
    """
    if "digest" in record:
        return is_same_run(record, identity)
    known = {"overrides": [], "digest": identity["digest"], **record}
    return all(known.get(key) == value for key, value in identity.items())


def is_same_run(record: dict, other: dict):
    """Whether two records are of one run, wherever its config lay and however it was overridden.

    Without a variant the config's file has to be called the same, as the rows are called after it.

    Args:
        record, other: the first with a digest.
    """
    is_same = all(record.get(key) == other.get(key) for key in SAME)
    return is_same and bool(record.get("variant") or _file(record) == _file(other))


def respelt(record, identity):
    """A record with the config's path and the overrides as they are given now, for one table."""
    return {**record, **{key: identity[key] for key in SPELLING if key in record}}


def config_digest(cfg: DictConfig) -> str:
    """A short digest of a resolved config, the same on every machine.

    Args:
        cfg: whole; its output folder does not count, nor what is as in YOUNGER.

    Returns:
        12 hexadecimal digits.
    """
    cfg = cfg.copy()
    cfg.train.output_dir = ""
    values = OmegaConf.to_container(cfg, resolve=True)
    train = values["train"]
    values["train"] = {k: v for k, v in train.items() if k not in YOUNGER or v != YOUNGER[k]}
    text = json.dumps(_named(values), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _file(record):
    return os.path.basename(record.get("config") or "")


def _named(value):
    """``value`` of dicts, lists, numbers and text; a class or an object by its name and values."""
    if isinstance(value, (dict, DictConfig)):
        return {str(k): _named(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_named(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "__qualname__"):
        # Ours may move to another module, and the run stays the same.
        ours = value.__module__.split(".")[0] == __name__.split(".")[0]
        module = __name__.split(".")[0] if ours else value.__module__
        return f"{module}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
