"""Doing one run: train_net.py in a process of its own, and the record of what came out."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass

import torch
import torchvision
from detectron2 import __version__ as detectron2_version

from ..config.load import load_config
from ..utils.errors import BadInput
from ..utils.files import write_json
from . import outcome
from .lock import FILE_NAME as LOCK
from .lock import Lock
from .plan import quietly
from .precision_recalls import Detections
from .store import PLAN, RESULT, has_begun, read_json, require_not_another
from .subprocesses import Processes

USUAL = "default_threshold"  # folder of the second evaluation, in that of the run
# A folder with one of these is of a run and may be emptied.
SIGNS = (PLAN, RESULT, "output.txt", "metrics.json", "config.yaml")


class RunFailed(Exception):
    """A run ended for another reason than a loss that is not finite; one line."""


@dataclass
class Workshop:
    """What all runs of a comparison share.

    Args:
        train_net (str): the script.
        threads (int): CPU threads of a run.
        jobs (int): runs side by side.
        processes (Processes):
        detections (Detections):
    """

    train_net: str
    threads: int
    jobs: int
    processes: Processes
    detections: Detections

    def train(self, planned, lock: Lock):
        """Trains and evaluates, a baseline at its usual threshold too; from any thread.

        A training that was interrupted goes on from its last checkpoint.

        Args:
            planned (Planned): :func:`prepare` has been called.
            lock: of its folder, taken; the process of the run holds it too.

        Returns:
            Ended: of the training. Its memory is None where it went on from a checkpoint, be it the
            last one: what the process before took is not known.

        Raises:
            RunFailed, Stopped
        """
        folder = planned.folder
        extra = [*planned.extra, f"train.output_dir={quoted(folder)}"]
        resume = ["--resume"] if os.path.exists(os.path.join(folder, "last_checkpoint")) else []
        ended = self._call([*resume, *planned.run.arguments(extra)], folder, lock)
        if resume:
            ended = ended._replace(peak_memory_mib=None)
        if ended.code == 0 and planned.usual:
            weights = quoted(os.path.join(folder, "model_final.pth"))
            folder = os.path.join(folder, USUAL)
            places = [f"train.init_checkpoint={weights}", f"train.output_dir={quoted(folder)}"]
            arguments = planned.run.arguments([*planned.extra, *planned.usual, *places])
            evaluated = self._call(["--eval-only", *arguments], folder, lock)
            if evaluated.code != 0:
                raise _failure(planned, folder, evaluated.code)
        return ended

    def _call(self, arguments, folder, lock):
        os.makedirs(folder, exist_ok=True)
        return self.processes.call(
            [sys.executable, self.train_net, *arguments],
            os.path.join(folder, "output.txt"),
            {**os.environ, "OMP_NUM_THREADS": str(self.threads)},
            (lock.descriptor,),
        )

    def record(self, planned, ended) -> dict:
        """Writes the record of a run that has ended.

        Args:
            planned (Planned):
            ended (Ended): of :meth:`train`.

        Returns:
            What was run, on what, and what came of it.

        Raises:
            RunFailed
            OSError: as of a full disk.
        """
        folder = planned.folder
        failed = outcome.error_line(folder) if ended.code == 2 else None  # 2 is for one clear line
        if ended.code != 0 and "not finite" not in (failed or ""):
            raise _failure(planned, folder, ended.code)
        facts = dict(planned.facts)
        on_gpu = facts.pop("on_gpu") and torch.cuda.is_available()
        numbers = outcome.training_numbers(folder)
        gpu_memory = numbers.pop("gpu_memory_mib")
        record = {
            **planned.identity,
            **facts,
            "device": torch.cuda.get_device_name()
            if on_gpu
            else f"{platform.machine()} CPU, {self.threads} thread(s)",
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "detectron2": detectron2_version,
            "jobs": self.jobs,
            "peak_memory_mib": gpu_memory if on_gpu else ended.peak_memory_mib,
            **numbers,
        }
        if planned.run.choosing:
            record["choosing"] = True
        if failed:  # a loss that is not finite is a result
            record["failed"] = outcome.without_folders(failed)
        else:
            record.update(self._scores(planned))
        record["complete"] = True
        path = os.path.join(folder, RESULT)
        write_json(path, record, indent=None)
        return {**read_json(path), "folder": folder}

    def _scores(self, planned):
        folder, run = planned.folder, planned.run
        scores = outcome.last_scores(folder)
        if "bbox/AP" not in scores:
            raise RunFailed(f"{run.title}: was not evaluated by box AP; see {folder}/output.txt")
        found = dict(scores)
        if run.choosing:
            return found
        cfg = quietly(load_config, run.config, run.changes(), variant=run.variant)
        cfg.train.output_dir = folder
        found["bootstrap"] = self.detections.bootstrap_ap(cfg, folder)
        if run.watched:
            found["precision_recall"] = self.detections.precision_recall(cfg, folder)
        if planned.usual:
            values = {float(x.partition("=")[2]) for x in planned.usual}
            usual = os.path.join(folder, USUAL)
            found["at_default_threshold"] = {
                **outcome.read_evaluation(usual),
                "bootstrap": self.detections.bootstrap_ap(cfg, usual),
                "test_score_thresh": values.pop(),
            }
        return found


def prepare(planned) -> bool:
    """Makes the folder of a run ready: kept if it is half done, else emptied of stale files.

    Args:
        planned (Planned): its folder is locked.

    Returns:
        Whether it is half done and kept.

    Raises:
        BadInput: the folder holds something else than a run, or a finished run of something else.
        OSError: as of a full disk.
    """
    folder = planned.folder
    require_not_another(planned)
    names = [name for name in os.listdir(folder) if name != LOCK]
    can_go_on = os.path.exists(os.path.join(folder, "last_checkpoint"))
    if can_go_on and has_begun(planned):
        return True
    if names and not any(sign in names for sign in SIGNS):
        raise BadInput(
            f"{folder}: would be emptied for a run, and holds {sorted(names)[0]}; give another "
            "--folder"
        )
    for name in names:
        one = os.path.join(folder, name)
        shutil.rmtree(one) if os.path.isdir(one) and not os.path.islink(one) else os.remove(one)
    write_json(os.path.join(folder, PLAN), planned.identity)
    return False


def quoted(path):
    """A path as a value of an override, whatever characters it has."""
    escaped = path.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _failure(planned, folder, code):
    line = outcome.error_line(folder) or f"exit code {code}"
    return RunFailed(f"{planned.run.title}: {line}; see {os.path.join(folder, 'output.txt')}")
