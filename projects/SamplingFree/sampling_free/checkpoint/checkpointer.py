"""Detectron2's checkpointer, with one clear line where a checkpoint is missing or does not fit.

A file of weights may come from anywhere, and an unpickler does whatever a file says. So tensors
(in a .pkl arrays), numbers and plain containers are read, and anything else only where
``allow_pickle`` says that the file is trusted.
"""

import contextlib
import functools
import glob
import logging
import os
import pickle
import re
import struct
import zipfile

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from ..utils.distributed import agreed
from ..utils.errors import BadInput
from ..utils.files import UNFINISHED, written_whole
from .integrity import fault_of, newest_whole
from .pickles import require_plain
from .stored_prior import StoredPrior

logger = logging.getLogger(__name__)

# What torch.load, and Detectron2 after it, raise for a torn file or one of something else.
UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    RuntimeError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)


# What PyTorch's unpickler and ours call a name that they do not admit.
NOT_PLAIN = re.compile(r"(?:GLOBAL|Unsupported class) ([\w.]+)")


# From here on no way around ``weights_only`` is known.
SAFE_PYTORCH = "2.10"


class CannotFetch(BadInput):
    """A URL of weights that cannot be reached."""


class PlainCheckpointer(Checkpointer):
    """fvcore's, which leaves it to the version of PyTorch whether a file may run code."""

    allow_pickle = False

    def _load_file(self, f):
        return torch.load(f, map_location="cpu", weights_only=not self.allow_pickle)


class NamingCheckpointer(DetectionCheckpointer, PlainCheckpointer):
    """Raises ``BadInput`` for a checkpoint that is missing, broken or of another architecture.

    Fine-tuning loads what fits; it is an error only if nothing does. Resuming and evaluation need
    every parameter.

    Attributes:
        allow_pickle (bool): load files that could run code, too.
    """

    def __init__(self, model, save_dir="", *, allow_pickle: bool = False, **kwargs):
        """Wraps Detectron2's checkpointer.

        Args:
            model, save_dir, kwargs: as in Detectron2's checkpointer.
            allow_pickle: see above; False refuses such a file.
        """
        super().__init__(model, save_dir, **kwargs)
        self.allow_pickle = allow_pickle

    def load(self, path: str, *args, need_all: bool = False, **kwargs) -> dict:
        """Loads a checkpoint; one that is broken or of another model is named in one line.

        Args:
            path: "" loads nothing.
            need_all: every parameter of the model must be in the checkpoint.
            args, kwargs: as in Detectron2's checkpointer.
        """
        self._path, self._need_all = path, need_all
        self._parsed_url_during_load = None  # Detectron2's main leaves it behind when a load fails
        try:
            # Detectron2 sends it to processes that cannot read it.
            to_check = path if comm.is_main_process() else ""
            if to_check and not self.path_manager.isfile(self.path_manager.get_local_path(path)):
                raise BadInput(f"{path}: no such checkpoint; see train.init_checkpoint")
            return super().load(path, *args, **kwargs)
        except OSError as e:  # of a URL
            if os.path.isfile(path):  # a torn one: PyTorch seeks before its beginning
                raise BadInput(f"{path}: not a readable checkpoint ({e})") from e
            raise CannotFetch(f"{path}: cannot be fetched ({e}); see train.init_checkpoint") from e
        except UNREADABLE as e:
            named = NOT_PLAIN.search(str(e))
            if named and not self.allow_pickle:
                kinds = "arrays, numbers" if path.endswith(".pkl") else "tensors, Python's numbers"
                raise BadInput(
                    f"{path}: refused, as {named[1]} in it could run code; {kinds} "
                    "and plain containers are read. If you trust where it comes from: "
                    "--allow-pickle, or train.allow_pickle=True"
                ) from e
            if "parameter group" in str(e):  # of PyTorch's optimizers
                raise BadInput(
                    f"{path}: its optimizer has other parameters than this model; resume with the "
                    "config that it was trained with"
                ) from e
            raise BadInput(f"{path}: not a readable checkpoint ({_first_line(e)})") from e

    def resume_or_load(self, path: str, *, resume: bool = True, need_all: bool = False) -> dict:
        """As Detectron2's; ``need_all`` goes for ``path``, a resumed run needs all anyway.

        In the place of a last checkpoint that is torn or absent the one before it is resumed.
        """
        if resume and self.has_checkpoint():
            return self.load(agreed(self._newest_whole), need_all=True)
        return self.load(path, checkpointables=[], need_all=need_all)

    def _newest_whole(self):
        named = self.get_checkpoint_file()
        path, fault = newest_whole(named)
        if fault:
            logger.warning(f"{named}: {fault}; resumed from the one before it, {path}")
        for leftover in glob.glob(os.path.join(glob.escape(self.save_dir), f"*{UNFINISHED}*")):
            os.remove(leftover)
        return path

    def save(self, name: str, **kwargs) -> None:
        """As Detectron2's, but the file appears under its name only when it is whole."""
        if not self.save_to_disk:  # another process may be amid writing this very file
            return
        try:
            super().save(f"{name}{UNFINISHED}", **kwargs)
        except RuntimeError as e:
            # PyTorch hides an interrupt behind an error of its own.
            if isinstance(e.__context__, KeyboardInterrupt):
                raise e.__context__ from None
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self.save_dir, f"{name}{UNFINISHED}.pth"))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        unfinished = os.path.join(self.save_dir, last_filename_basename)
        finished = os.path.join(self.save_dir, last_filename_basename.replace(UNFINISHED, ""))
        with open(unfinished, "rb") as f:
            os.fsync(f.fileno())  # else the name may outlive a power cut, and the content not
        os.replace(unfinished, finished)
        tag = os.path.join(self.save_dir, "last_checkpoint")
        with written_whole(tag) as f:
            f.write(os.path.basename(finished))

    def _load_file(self, filename):
        if zipfile.is_zipfile(filename) and (fault := fault_of(filename)):
            raise BadInput(f"{filename}: {fault}; see train.init_checkpoint")
        if not self.allow_pickle:  # these Detectron2 reads itself, and trusts them
            if filename.endswith(".pkl"):
                with self.path_manager.open(filename, "rb") as f:
                    require_plain(f)
            elif not self.save_dir or os.path.dirname(filename) != self.save_dir:
                _warn_of_old_pytorch(torch.__version__)
            if filename.endswith(".pyth"):
                PlainCheckpointer._load_file(self, filename)
        return super()._load_file(filename)

    def _load_model(self, checkpoint):
        num_entries = len(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        wanted = _parameters(self.model.state_dict())
        absent = _parameters(incompatible.missing_keys)
        foreign = _parameters(incompatible.unexpected_keys)
        wrong = [f"{k} {a} instead of {b}" for k, a, b in incompatible.incorrect_shapes]
        # Heads differ in fine-tuning; what is learned from pictures must be there by half.
        core = [k for k in wanted if k.startswith("backbone.")] or wanted
        if 2 * len(set(core) & set(absent)) > len(core):
            raise BadInput(
                f"{self._path}: of another architecture: {len(wanted) - len(absent)} of its "
                f"{num_entries} entries fit this model; see train.init_checkpoint"
            )
        if self._need_all and (absent or foreign):
            examples = wrong + [f"no {k}" for k in absent] + [f"unknown {k}" for k in foreign]
            raise BadInput(
                f"{self._path}: of another architecture: {len(absent)} of the {len(wanted)} "
                f"parameters are not filled, {len(foreign)} of its entries are unknown "
                f"({', '.join(examples[:3])}); use the config that it was trained with"
            )
        return incompatible


def load_trained(
    model: nn.Module, path: str, save_dir: str = "", allow_pickle: bool = False
) -> None:
    """Fills every parameter, and tells the model its prior, for inference.

    Detectron2's own checkpointer and ``DefaultPredictor`` fill the parameters alone; that is enough
    unless ``test_score_thresh`` is to follow from the prior.

    Args:
        model: changed in place.
        path: of a checkpoint.
        save_dir: as in Detectron2's checkpointer.
        allow_pickle: as in :class:`NamingCheckpointer`.

    Raises:
        BadInput: if the checkpoint does not fit, could run code, or has no prior for a threshold
            that needs it.
    """
    stored = StoredPrior()
    checkpointer = NamingCheckpointer(model, save_dir, allow_pickle=allow_pickle, prior=stored)
    rest = checkpointer.load(path, checkpointables=["prior"], need_all=True)
    if not stored.state:  # where Detectron2's trainers keep what a hook stores
        hooks = (rest.get("trainer") or {}).get("hooks", {})
        stored.load_state_dict(hooks.get("PriorInit", {}))
    stored.give_all(model)


def _parameters(keys):
    """The keys without those that come and go with versions, or that only training needs."""
    ignored = ("num_batches_tracked", "pixel_mean", "pixel_std")
    return [k for k in keys if not k.endswith(ignored) and not {"guide", "ghm"} & set(k.split("."))]


@functools.lru_cache(None)  # once
def _warn_of_old_pytorch(version):
    if version < SAFE_PYTORCH:
        logger.warning(
            f"Weights from elsewhere, read by PyTorch {version}: a forged file could run code all "
            "the same (CVE-2025-32434 before 2.6, CVE-2026-24747 before 2.10); update PyTorch, or "
            "load only what you trust"
        )


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
