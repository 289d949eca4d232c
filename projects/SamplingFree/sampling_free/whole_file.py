"""Files that are whole or absent, also after a power cut."""

import contextlib
import os

UNFINISHED = ".unfinished"


@contextlib.contextmanager
def written_whole(path):
    """A text file to write into, which gets its name when it is whole; on an error it is removed.

    Args:
        path (str): what is there stays till then.
    """
    unfinished = f"{path}.{os.getpid()}{UNFINISHED}"  # several processes may write it
    try:
        with open(unfinished, "w") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):  # it is in its place
            os.remove(unfinished)
