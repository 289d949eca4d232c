"""SIGTERM and Ctrl-C end a run after the iteration that it is in, with a checkpoint.

A cluster sends SIGTERM some time before it takes a machine away.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.util import Finalize

import torch
from torch.multiprocessing import ProcessExitedException
from torch.utils.data import DataLoader

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A run was ended by a signal.

    Attributes:
        code (int): what the process exits with, 128 and the signal's number.
    """

    def __init__(self, number: int, message: str = ""):
        """Keeps the signal and the message.

        Args:
            number: of the signal.
            message: one line for the user; "" where another process says it.
        """
        super().__init__(message)
        self.number = number
        self.code = 128 + number


class Interruption:
    """Takes note of the first of ``SIGNALS`` while a ``with`` block runs.

    A second Ctrl-C does what it always does. Where a signal is ignored, as Ctrl-C is in what a
    shell starts in the background, it stays ignored; and outside the main thread, which alone hears
    of signals, nothing changes.

    Attributes:
        number (int or None): of the signal that came.
    """

    def __init__(self):
        self.number = None
        self._at_once = False
        self._handlers = {}
        self._num_ctrl_c = 0
        self._pid = None

    def __enter__(self):
        self.number, self._num_ctrl_c, self._pid = None, 0, os.getpid()
        self._handlers = _handle(self._note)
        return self

    def __exit__(self, *exception):
        _restore(self._handlers)
        self._handlers = {}

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a signal raise ``Interrupted`` in this block, as does one that came before it."""
        if self.number:
            raise Interrupted(self.number)
        before, self._at_once = self._at_once, True
        try:
            yield
        finally:
            self._at_once = before

    def _note(self, number, frame):
        if os.getpid() != self._pid:
            return _obey(number)
        # The first Ctrl-C may come together with a SIGTERM from the process that waits for this.
        self._num_ctrl_c += number == signal.SIGINT
        if self._num_ctrl_c > 1:
            raise KeyboardInterrupt
        if not self.number:
            self.number = number
            if self._at_once:
                raise Interrupted(number)


@contextlib.contextmanager
def passed_on() -> Iterator[None]:
    """Ends the processes that this one has started, and waits for, when a signal comes.

    Raises:
        Interrupted: there were none yet, or they had not begun to train, and so said nothing.
    """
    first = []

    def pass_on(number, frame):
        # A terminal sends Ctrl-C to all of them itself; what came first counts.
        processes = multiprocessing.active_children()
        for process in processes:
            os.kill(process.pid, signal.SIGTERM)
        first.append(number)
        if not processes and len(first) == 1:
            raise interrupted()

    def interrupted():
        return Interrupted(first[0], f"interrupted by {signal.Signals(first[0]).name}")

    handlers = _handle(pass_on)
    try:
        yield
    except ProcessExitedException as e:
        if first and -e.exit_code in SIGNALS:
            raise interrupted() from None
        raise
    finally:
        _restore(handlers)


class LoaderSignals:
    """A ``worker_init_fn``: processes that load data leave signals to the one that trains.

    A terminal and a cluster signal all processes; without its loaders a run could not finish its
    iteration. When Python exits it ends those that are left by SIGTERM; that one they obey.
    """

    def __init__(self):
        self._is_over = torch.zeros(1, dtype=torch.uint8).share_memory_()
        Finalize(self, self._is_over.fill_, (1,), exitpriority=0)

    def __call__(self, worker_id):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _end(self, number, frame):
        if self._is_over:
            os._exit(0)  # PyTorch makes an error of another code


class SignalSafeLoader(DataLoader):
    """Its processes hear of no signal before ``LoaderSignals``, its ``worker_init_fn``, handles it.

    One that a signal ends while it starts would end the run too.
    """

    def __iter__(self):
        with _held_back():
            return super().__iter__()


@contextlib.contextmanager
def _held_back():
    """Signals come after this block; processes that it forks get none until they unblock them."""
    came = []
    # Blocked in this thread alone: another one may take the signal, and Python tells this one.
    handlers = _handle(lambda number, frame: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _restore(handlers)
        for number in came:
            signal.raise_signal(number)


def _obey(number):
    """In a process that was forked and has the handler by that: SIGTERM ends it."""
    if number == signal.SIGTERM:
        os._exit(128 + number)


def _handle(handler):
    """The handlers before, by signal, of those that are now handled by another one."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {n: signal.getsignal(n) for n in SIGNALS}
    before = {n: h for n, h in before.items() if h not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    return before


def _restore(handlers):
    for number, handler in handlers.items():
        signal.signal(number, handler)
