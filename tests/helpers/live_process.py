"""train_net.py as a process that a test sends signals to."""

import os
import signal
import subprocess

from helpers.patience import PATIENCE, wait_for
from helpers.tiny_run import REPO, command, environment


def start(config, *arguments):
    """In a process group of its own; its stdout has its stderr, too."""
    return subprocess.Popen(
        command(config, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=REPO,
        start_new_session=True,
        # Where the tests run in the background of a shell, it is ignored by all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_until(true, process):
    """False if the process ended first."""
    if not wait_for(lambda: true() or process.poll() is not None):
        kill(process)
        raise AssertionError(f"nothing in {PATIENCE} s: {process.args}")
    return process.returncode is None


def text_of(process):
    """What it has said, when it has ended."""
    return process.communicate(timeout=PATIENCE)[0]


def kill(process):
    """And those that it has started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
