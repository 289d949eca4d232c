"""The two ways in which the package says that it cannot go on."""

import contextlib
import errno
import math
import os
import tempfile
from collections.abc import Iterator


class BadInput(Exception):
    """A mistake in a config, a data set or a file: one line that names it and the way out.

    The command line tools print the line without a stack trace and exit with code 2.
    """

    def __init__(self, message: object):
        # A DataLoader worker re-raises with its whole traceback in front of the message.
        super().__init__(printable(str(message).rsplit(f"{type(self).__name__}: ", 1)[-1]))


def printable(message: str) -> str:
    """Returns a text as one line for any terminal and log file, with the rest escaped."""
    line = " ".join(message.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def require_number(key: str, value: object, low: float, high: float) -> None:
    """Raises BadInput unless ``value``, of the config's ``key``, is a number in [low, high]."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        limits = f"from {low:g} up" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise BadInput(f"{key}={value!r}: give a number {limits}")


def require_writable(option: str, path: str | None) -> None:
    """Raises BadInput unless a file can be written there; its folder is made.

    Args:
        option: of the command line, for the message.
        path: None is not looked at.
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


def require_writable_folder(option: str, folder: str) -> None:
    """Raises BadInput unless files can be written into a folder, which is made.

    Args:
        option: of the command line or the config, for the message.
        folder: where the files are to be.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as f:
            f.write(b" " * 4096)
    except OSError as e:
        reason = "is a file" if os.path.isfile(folder) else e.strerror
        equals = " " if option.startswith("-") else "="
        raise BadInput(
            f"{option}{equals}{folder}: cannot be written ({reason}); give another folder"
        ) from None


# A disk, or a user's part of it, is full, the file is larger than allowed, or it became read-only.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def disk_fault(error: BaseException | None) -> OSError | None:
    """Finds the error of a full or read-only disk in an exception or its causes.

    PyTorch hides it behind a RuntimeError of its own.
    """
    while error is not None and not (isinstance(error, OSError) and error.errno in DISK):
        error = error.__cause__ or error.__context__
    return error


def disk_line(fault: OSError, place: str = "a file") -> str:
    """Describes what :func:`disk_fault` found; ``place`` stands for an unknown file name."""
    return f"{fault.filename or place}: cannot be written ({fault.strerror})"


# Of fvcore's box losses and of Detectron2's Boxes; a box that a network predicts is only ever bad
# where it is not a number.
BAD_BOXES = ("bad box", "infinite or NaN")


@contextlib.contextmanager
def naming_non_finite() -> Iterator[None]:
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
