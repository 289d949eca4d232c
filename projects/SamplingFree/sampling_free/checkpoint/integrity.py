"""The newest checkpoint of a folder that is whole.

A file is torn where a disk was full or a machine lost its power: it ends early, or a part of it was
never written.
"""

import glob
import os
import zipfile
import zlib

from ..utils.errors import BadInput

TORN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,  # "is encrypted"
    ValueError,  # a name that is no text
)


def fault_of(path: str) -> str | None:
    """What is wrong with a file that ``torch.save`` wrote, by its own checksums.

    ``torch.load`` alone takes a block of zeros for weights.

    Args:
        path:

    Returns:
        None if it is whole.
    """
    if not os.path.isfile(path):
        return "no such checkpoint"
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
    except TORN as e:
        return f"not a readable checkpoint ({e})"
    return f"not a readable checkpoint (checksum of {broken})" if broken else None


def newest_whole(named: str) -> tuple[str, str | None]:
    """Finds the newest checkpoint of a folder that is whole.

    Args:
        named: path of the checkpoint to resume from.

    Returns:
        The path of a whole one, ``named`` or else the one of its folder
        that was written last; and, if it is another, what is wrong with ``named``.

    Raises:
        BadInput: none is whole.
    """
    fault = fault_of(named)
    if not fault:
        return named, None
    pattern = os.path.join(glob.escape(os.path.dirname(named)), "model_*.pth")
    others = set(glob.glob(pattern)) - {named}
    for path in sorted(others, key=lambda x: (os.path.getmtime(x), x), reverse=True):
        if not fault_of(path):
            return path, fault
    raise BadInput(
        f"{named}: {fault}, and no other checkpoint there is whole; see train.init_checkpoint"
    )
