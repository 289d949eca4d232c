"""The processes of the runs."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from typing import NamedTuple, Optional


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        code (int): its exit status; negative for the signal that killed it.
        peak_memory_mib (float or None): resident memory, at most; None where an earlier process
            has done a part.
    """

    code: int
    peak_memory_mib: Optional[float]


class Stopped(Exception):
    """No process is started any more."""


class Processes:
    """Starts processes, of several threads too, and can end all of them."""

    def __init__(self):
        self._lock = threading.Lock()
        self._pids = set()
        self._stopped = False

    def call(
        self, command: list[str], output: str, environment: dict, descriptors: Collection[int] = ()
    ) -> Ended:
        """Runs a command to its end.

        Args:
            command:
            output: file that gets what it says; written anew.
            environment: variables.
            descriptors: of open files that the process gets.

        Raises:
            Stopped: after :meth:`stop`.
        """
        with open(output, "w") as out:
            with self._lock:
                if self._stopped:
                    raise Stopped
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=environment,
                    pass_fds=descriptors,
                )
                self._pids.add(process.pid)
            # Not Popen.wait(): only this call knows the memory of one child of several.
            _, status, usage = os.wait4(process.pid, 0)
            with self._lock:
                self._pids.discard(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        per_mib = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
        return Ended(process.returncode, usage.ru_maxrss / per_mib)

    def stop(self):
        """Ends all of them."""
        with self._lock:
            self._stopped = True
            for pid in self._pids:
                os.kill(pid, signal.SIGTERM)
