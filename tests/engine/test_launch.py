"""Runs of two processes on the CPU: how they are started, and that none hangs when one ends."""

import math
import os
import subprocess
import sys
import time
from argparse import Namespace
from datetime import timedelta

import pytest
import torch
from detectron2.utils import comm

from helpers.launched import url, weights
from helpers.patience import PATIENCE
from helpers.tiny_run import REPO, command, environment, same, write_config
from sampling_free import SamplingFreeRetinaNet
from sampling_free.engine.launch import start
from sampling_free.utils.errors import BadInput

FAILING = f"import {__name__}\nmodel._target_ = {__name__}.Failing{{}}\n"
LINE = "the third step of process 1"


class Failing(SamplingFreeRetinaNet):
    """Comes to an end in the second process, in its third step."""

    num_steps = 0

    def forward(self, inputs):
        self.num_steps += self.training
        if self.num_steps == 3:
            self.fail() if comm.get_rank() == 1 else self.go_on()
        return super().forward(inputs)

    def go_on(self):
        pass

    def fail(self):
        raise RuntimeError(LINE)


class FailingBadInput(Failing):
    def fail(self):
        raise BadInput(LINE)


class FailingKilled(Failing):
    def fail(self):
        os.kill(os.getpid(), 9)


class FailingHangs(Failing):
    def fail(self):
        time.sleep(PATIENCE)

    def go_on(self):
        # Shorter from here on only: a busy machine takes its time to start the processes.
        group = torch.distributed.group.WORLD
        print("the timeout is", group._get_backend(torch.device("cpu")).options._timeout)
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=3), group)


def torchrun(config, *arguments):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return run + command(config, *arguments)[1:]


def ends(*commands):
    """Starts several, waits for all; [(exit code, stdout and stderr)]. Hanging ends the test."""
    kinds = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    started = [
        subprocess.Popen(words, env=environment(), cwd=REPO, start_new_session=True, **kinds)
        for words in commands
    ]
    try:
        texts = [process.communicate(timeout=PATIENCE)[0] for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, 9)
    return [(process.returncode, text) for process, text in zip(started, texts)]


@pytest.mark.long
def test_torchrun_and_the_flag_give_the_same_weights(tmp_path):
    found = []
    for name in ("flag", "torchrun"):
        (tmp_path / name).mkdir()
        config = write_config(tmp_path / name)
        words = torchrun(config) if name == "torchrun" else command(config, "--num-gpus=2", url())
        ((code, text),) = ends(words)
        assert code == 0, text
        found.append(weights(tmp_path / name))
    assert same(*found)


class TestOneFails:
    @pytest.mark.long
    def test_the_others_end_with_its_reason(self, tmp_path):
        config = write_config(tmp_path, FAILING.format(""))
        ((code, text),) = ends(command(config, "--num-gpus=2", url()))
        assert code == 1 and f"RuntimeError: {LINE}" in text and "Process 1 terminated" in text

    def test_a_mistake_of_the_user_stays_one_line(self, tmp_path):
        config = write_config(tmp_path, FAILING.format("BadInput"))
        ((code, text),) = ends(command(config, "--num-gpus=2", url()))
        # Beside it the other process may log that its connection was closed.
        assert code == 2 and text.count(f"error: {LINE}") == 1
        assert f"BadInput: {LINE}" not in text

    @pytest.mark.long
    def test_a_process_that_is_killed_is_named(self, tmp_path):
        config = write_config(tmp_path, FAILING.format("Killed"))
        ((code, text),) = ends(command(config, "--num-gpus=2", url()))
        assert code == 1 and "process 1 terminated with signal SIGKILL" in text

    @pytest.mark.long
    def test_one_that_hangs_is_waited_for_as_long_as_the_timeout(self, tmp_path):
        config = write_config(tmp_path, FAILING.format("Hangs"))
        ((code, text),) = ends(command(config, "--num-gpus=2", url(), "--timeout=12.5"))
        assert code == 1 and "the timeout is 0:12:30" in text
        assert "Process 0 terminated" in text and "3000ms" in text

    @pytest.mark.long
    def test_so_does_the_other_machine(self, tmp_path):
        config, where = write_config(tmp_path, FAILING.format("")), url()
        first, second = ends(
            *(command(config, "--num-machines=2", f"--machine-rank={i}", where) for i in range(2))
        )
        assert second[0] == 1 and f"RuntimeError: {LINE}" in second[1]
        assert first[0] == 1 and "Connection closed by peer" in first[1]

    @pytest.mark.long
    def test_so_does_torchrun(self, tmp_path):
        config = write_config(tmp_path, FAILING.format(""))
        ((code, text),) = ends(torchrun(config))
        assert code == 1 and f"RuntimeError: {LINE}" in text


class TestFlags:
    @pytest.mark.parametrize("value", [0.0, -3.0, math.nan, 1e9])
    def test_a_timeout_that_is_none(self, value):
        with pytest.raises(BadInput, match="^--timeout="):
            start(print, Namespace(timeout=value))

    def test_torchrun_and_a_number_of_gpus(self, monkeypatch):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
        with pytest.raises(BadInput, match="torchrun says it already"):
            start(print, Namespace(timeout=1.0, num_gpus=2, num_machines=1))
