"""A lock file, so that two comparisons at once do not do the same run twice."""

import contextlib
import fcntl
import json
import os
import socket

FILE_NAME = "lock.json"


class Lock:
    """Held from :meth:`take` to :meth:`release`, or till all processes that have it are dead.

    The system's lock of an open file, as `filelock` takes it. That keeps its descriptor to itself;
    here the process of a run gets it, which may outlive a comparison that was killed.

    Args:
        folder: made if need be; the lock file lies in it.
    """

    def __init__(self, folder: str):
        self.path = os.path.join(folder, FILE_NAME)
        self.descriptor: int | None = None

    def take(self) -> bool:
        """Takes the lock; False if another process holds it."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        descriptor, taken = os.open(self.path, os.O_CREAT | os.O_RDWR), False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have removed the file since it was opened here.
            if os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                os.truncate(descriptor, 0)
                holder = {"pid": os.getpid(), "host": socket.gethostname()}
                os.write(descriptor, json.dumps(holder).encode())
                self.descriptor, taken = descriptor, True
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            if not taken:
                os.close(descriptor)
        return taken

    def release(self):
        """Gives it back, and takes it from the processes of the run."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path)
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)
        self.descriptor = None

    def holder(self) -> str:
        """Who took it last, in words."""
        try:
            with open(self.path) as f:
                found = json.load(f)
            return f"process {found['pid']} on {found['host']}"
        except (OSError, ValueError, TypeError, KeyError):
            return "another process"
