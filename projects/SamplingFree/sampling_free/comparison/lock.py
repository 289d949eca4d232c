"""A lock file, so that two comparisons at once do not do the same run twice."""

import contextlib
import fcntl
import json
import os
import socket

from ..utils.files import write_json

FILE_NAME = "lock.json"


class Lock:
    """Held from :meth:`take` to :meth:`release`; left by a process that has died it is void.

    Args:
        folder (str): made if need be; the lock file lies in it.
    """

    def __init__(self, folder):
        self.folder = folder
        self.path = os.path.join(folder, FILE_NAME)

    def take(self) -> bool:
        """Takes the lock.

        Returns:
            False if another process holds it.
        """
        os.makedirs(self.folder, exist_ok=True)
        with self._one_at_a_time():
            if self._is_void():
                os.remove(self.path)
            try:
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return False
            with os.fdopen(handle, "w") as f:
                json.dump({"pid": os.getpid(), "host": socket.gethostname()}, f)
        return True

    def release(self):
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path)

    def add(self, pid):
        """Holds it for a process of the run too, which may outlive a comparison that was killed."""
        write_json(self.path, {**self.holder(), "run": pid})

    def holder(self):
        """dict: `pid` and `host` of who holds it, and `run`, the pid of the run once it has begun.

        Empty if nobody does, or if it is unreadable.
        """
        try:
            with open(self.path) as f:
                return dict(json.load(f))
        except (OSError, ValueError, TypeError):
            return {}

    @contextlib.contextmanager
    def _one_at_a_time(self):
        """Of two that find a void lock on this machine, the second finds the first one's."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _is_void(self):
        """Only on the machine that it is of can processes be known to have died."""
        holder = self.holder()
        if holder.get("host") != socket.gethostname():
            return False
        return not any(_lives(holder[key]) for key in ("pid", "run") if key in holder)


def _lives(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of somebody else
        return True
    return True
