"""What goes into a checkpoint besides weights, optimizer and schedule, to resume to the last bit.

Numbers that training updates but no state dict has, and the newest scalars of Detectron2's event
storage, of which its writers take medians.
"""

from detectron2.utils.events import EventStorage
from torch import nn

SMOOTHED = 20  # iterations: Detectron2's writers take the median of so many


def running_numbers(model: nn.Module) -> dict[str, float]:
    """Returns the numbers that training updates and no state dict has.

    Args:
        model: not wrapped.

    Returns:
        By their names in the checkpoint.
    """
    return {
        name: vars(owner)[attribute]
        for name, owner, attribute in _attributes(model)
        if attribute in vars(owner)
    }


def set_running_numbers(model, state):
    """Args: model (nn.Module): not wrapped; state (dict): of :func:`running_numbers`."""
    for name, owner, attribute in _attributes(model):
        if name in state:
            setattr(owner, attribute, state[name])


def scalars_of(storage: EventStorage) -> dict:
    """Returns the newest scalars of an event storage.

    Args:
        storage:

    Returns:
        "scalars", of what is smoothed: name -> the newest (value, iteration); "unsmoothed",
        of the others: name -> (value, iteration). Times are left out.
    """
    hints, latest = storage.smoothing_hints(), storage.latest()
    names = {smoothed: [n for n, h in hints.items() if h == smoothed] for smoothed in (True, False)}
    return {
        "scalars": {
            name: [list(pair) for pair in storage.history(name).values()[-SMOOTHED:]]
            for name in names[True]
            if not _is_time(name)
        },
        "unsmoothed": {name: list(latest[name]) for name in names[False] if not _is_time(name)},
    }


def put_scalars(storage: EventStorage, state: dict):
    """Puts back what :func:`scalars_of` took.

    Args:
        storage: its iteration is changed.
        state: may lack one part or both.
    """
    for name, pairs in state.get("scalars", {}).items():
        for value, iteration in pairs:
            storage.iter = iteration
            storage.put_scalar(name, value)
    for name, (value, iteration) in state.get("unsmoothed", {}).items():
        storage.iter = iteration
        storage.put_scalar(name, value, smoothing_hint=False)


def _is_time(name):
    return "time" in name or name == "eta_seconds"


def _attributes(model):
    """Name in the checkpoint, owner, attribute."""
    yield "loss_normalizer", model, "loss_normalizer"  # Detectron2's RetinaNet
    for name, module in model.named_modules():
        if hasattr(module, "guide_log"):
            for attribute in ("num_batches", "num_empty"):
                yield f"{name}.{attribute}".lstrip("."), module.guide_log, attribute
