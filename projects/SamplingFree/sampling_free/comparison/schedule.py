"""Runs side by side, each by one process alone, with what is done left out."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from tqdm import tqdm

from ..utils.errors import BadInput
from .execute import RunFailed, prepare
from .lock import Lock
from .store import result_of, why_repeated

POLL = 2.0  # seconds until a run is asked for again that another comparison is doing


class SideBySide:
    """Does the runs of a comparison, several at a time.

    Args:
        workshop (Workshop): does a run.
        output (Output): its records count as done too.
        poll (float): seconds.
    """

    def __init__(self, workshop, output, poll=POLL):
        self.workshop, self.output, self.poll = workshop, output, poll
        self.records, self.failures = {}, {}
        self._told = set()

    def run(self, plan, title: str, after: Callable = lambda: None) -> list[dict]:
        """Does what is not done.

        A run that another comparison is doing at the moment is waited for.

        Args:
            plan (list[Planned]):
            title: of the progress bar.
            after: called after each run that was done now; its BadInput is a warning.

        Returns:
            The records of the runs that are done, in the order of the plan.
        """
        waiting, running = deque(plan), {}
        pool = ThreadPoolExecutor(self.workshop.jobs)
        with tqdm(total=len(plan), desc=title, unit="run", disable=not plan) as bar:
            try:
                while waiting or running:
                    self._start(waiting, running, pool, bar)
                    names = ", ".join(one.run.title for one, _ in running.values())
                    bar.set_postfix_str(names)
                    self._wait(waiting, running)
                    for future in [f for f in running if f.done()]:
                        one, lock = running.pop(future)
                        self._finish(one, lock, future, after)
                        bar.update()
            except BaseException:
                self.workshop.processes.stop()
                raise
            finally:
                pool.shutdown(wait=True)
                for _, lock in running.values():
                    lock.release()
        return self.done(plan)

    def done(self, plan):
        """list[dict]: the records so far, in the order of the plan."""
        done = [(one, self.records[one.folder]) for one in plan if one.folder in self.records]
        # A run that chose a rate may be a final one too.
        return [
            r if one.run.choosing else {k: v for k, v in r.items() if k != "choosing"}
            for one, r in done
        ]

    def _start(self, waiting, running, pool, bar):
        """Starts runs until all jobs have one; those of another process go behind the others."""
        for _ in range(len(waiting)):
            if len(running) == self.workshop.jobs:
                return
            one = waiting.popleft()
            lock = Lock(one.folder)
            record = result_of(one) or self.output.find(one)
            if record is None and lock.take():
                record = result_of(one)  # another process may just have done it
                if record is None:
                    if not self._prepare(one, lock):
                        bar.update()
                        continue
                    running[pool.submit(self.workshop.train, one, lock)] = one, lock
                    continue
                lock.release()
            if record is None:
                self._tell_of(lock, one)
                waiting.append(one)
            else:
                self.records[one.folder] = record
                bar.update()

    def _prepare(self, one, lock):
        """Whether the folder is ready; what is wrong with it is told."""
        reason = why_repeated(one)
        try:
            goes_on = prepare(one)
        except (BadInput, OSError) as e:
            lock.release()
            self._fail(one, e)
            return False
        if reason:
            how = "it goes on from its last checkpoint" if goes_on else "the run is repeated"
            tqdm.write(f"warning: {reason}; {how}")
        return True

    def _wait(self, waiting, running):
        if running:
            # With a job free, what waits is locked and may become free.
            is_full = len(running) == self.workshop.jobs or not waiting
            wait(running, None if is_full else self.poll, FIRST_COMPLETED)
        elif waiting:
            time.sleep(self.poll)

    def _finish(self, one, lock, future, after):
        try:
            record = self.workshop.record(one, future.result())
        except (RunFailed, BadInput) as e:
            self._fail(one, e)
            return
        except OSError as e:  # a full disk; the other runs may still do
            self._fail(one, f"{one.run.title}: {e}; see {one.folder}")
            return
        finally:
            lock.release()
        self.records[one.folder] = record
        tqdm.write(f"{one.run.title}: {result_line(record)}")
        try:
            after()
        except BadInput as e:
            tqdm.write(f"warning: {e}")

    def _fail(self, one, error):
        self.failures[one.folder] = str(error)
        tqdm.write(f"failed: {error}")

    def _tell_of(self, lock, one):
        if one.folder not in self._told:
            self._told.add(one.folder)
            who = f"{lock.holder()}, or the run that it began"
            tqdm.write(f"{one.run.title}: waits for {who}, to give back {lock.path}")


def result_line(record):
    """AP and the like of a record in one line, or why there is none."""
    keys = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50")
    scores = [f"{key} {record[key]:.1f}" for key in keys if record.get(key) is not None]
    return ", ".join(scores) or record.get("failed", "no AP")
