"""Files that are whole or absent, and JSON that any parser reads.

NaN and infinity, which JSON does not have, are null.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from typing import IO

UNFINISHED = ".unfinished"


def finite(value: object) -> object:
    """Replaces each number that is not finite in dicts and lists by None."""
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(
    path: str, value: object, indent: int | None = 1, default: Callable | None = None
) -> None:
    """Writes a file as a whole, or leaves what was there.

    Args:
        path: its folder is made.
        value: of dicts, lists, text and numbers; null for those that are not finite.
        indent: None for one long line.
        default: makes one of these of anything else; None for a TypeError.

    Raises:
        OSError: as of a full disk.
    """
    text = json.dumps(finite(value), indent=indent, allow_nan=False, default=default)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with written_whole(path) as f:
        f.write(f"{text}\n")


@contextlib.contextmanager
def written_whole(path: str, mode: str = "w") -> Iterator[IO]:
    """Opens a file to write, which gets its name when it is whole; an error removes it.

    Args:
        path: what is there stays till then.
        mode: "w" for text, "wb" for bytes.
    """
    unfinished = f"{path}.{os.getpid()}{UNFINISHED}"  # several processes may write it
    try:
        with open(unfinished, mode) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):  # it is in its place
            os.remove(unfinished)
