"""The two ways in which the package says that it cannot go on."""

import contextlib
import math
import os


class BadInput(Exception):
    """A mistake in a config, a data set or a file: one line that names it and the way out.

    The command line tools print the line without a stack trace and exit with code 2.
    """

    def __init__(self, message):
        # A DataLoader worker re-raises with its whole traceback in front of the message.
        super().__init__(printable(str(message).rsplit("BadInput: ", 1)[-1]))


def printable(message):
    """One line that any terminal and log file takes, also of a file name that is not UTF-8.

    Args:
        message (str):

    Returns:
        str: without line breaks; what cannot be printed is escaped.
    """
    line = " ".join(message.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def require_number(key, value, low, high):
    """Raises BadInput unless ``value`` is a number in [low, high].

    Args:
        key (str): where a config has it.
        value (object): bool is no number here.
        low, high (float):
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        limits = f"from {low:g} up" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise BadInput(f"{key}={value!r}: give a number {limits}")


def require_writable(option, path):
    """Raises BadInput unless a file can be written there; its folder is made.

    Args:
        option (str): of the command line, for the message.
        path (str or None): None is not looked at.
    """
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    reason = "is a folder" if os.path.isdir(path) else None
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        reason = e.strerror
    if reason is None and not os.access(path if os.path.exists(path) else folder, os.W_OK):
        reason = "no permission"
    if reason:
        raise BadInput(f"{option} {path}: cannot be written ({reason}); give another file")


# Of fvcore's box losses and of Detectron2's Boxes; a box that a network predicts is only ever bad
# where it is not a number.
BAD_BOXES = ("bad box", "infinite or NaN")


@contextlib.contextmanager
def naming_non_finite():
    """Turns the assertions of box losses into FloatingPointError."""
    try:
        yield
    except AssertionError as e:
        if not any(words in str(e) for words in BAD_BOXES):
            raise
        raise FloatingPointError("the predicted boxes are not finite") from e


class NonFiniteLoss(FloatingPointError):
    """A loss or a gradient became NaN or infinite; one line: where, which, with which images."""


class NonFiniteBatch(NonFiniteLoss):
    """The same where the batch may be left out, as nothing has come of it yet."""
