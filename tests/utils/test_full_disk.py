"""A disk that takes no more: one line, what is there stays, and --resume goes on."""

import errno
import os

import pytest
import torch

from helpers.tiny_run import (
    error_line,
    load,
    metrics,
    only_error,
    run,
    same,
    train_net,
    write_config,
)
from sampling_free.cli import one_line_errors
from sampling_free.utils.errors import BadInput, disk_fault
from sampling_free.utils.files import written_whole

needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
SHORT = ["train.max_iter=4", "train.checkpointer.period=2"]


class Full:
    """A file on a disk that becomes full."""

    def __init__(self, file):
        self.file, self.left = file, 2000

    def write(self, data):
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def flush(self):
        self.file.flush()


def test_the_checkpoint_before_stays_and_is_resumed(tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir(), (tmp_path / "full").mkdir()
    whole, full = (write_config(tmp_path / name) for name in ("whole", "full"))
    run(whole, *SHORT)
    out, write = tmp_path / "full" / "out", torch.save

    def save(data, file):
        write(data, Full(file) if "model_0000003" in file.name else file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        line = f"output_dir={out}: .*No space left on device.*--resume goes on from {out}/model_0+1"
        with pytest.raises(BadInput, match=line):
            run(full, *SHORT)
    assert not list(out.glob("*unfinished*"))
    assert (out / "last_checkpoint").read_text() == "model_0000001.pth"
    run(full, *SHORT, resume=True)
    a, b = (load(tmp_path / n / "out" / "model_final.pth") for n in ("whole", "full"))
    assert same(a["model"], b["model"])
    assert same(*(metrics(tmp_path / n / "out") for n in ("whole", "full")))


@needs_dev_full
def test_by_train_net(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model_0000003.unfinished.pth").symlink_to("/dev/full")
    line = error_line(train_net(write_config(tmp_path), *SHORT))
    assert f"train.output_dir={out}: cannot be written (No space left on device)" in line
    assert line.endswith(f"--resume goes on from {out}/model_0000001.pth")
    assert {path.name for path in out.glob("model*")} == {"model_0000001.pth"}


@needs_dev_full
@pytest.mark.parametrize("file", ["metrics.json", "inference/coco_instances_results.json"])
def test_of_any_file_of_a_run(tmp_path, file):
    path = tmp_path / "out" / file
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/full")
    with pytest.raises(BadInput, match="output_dir=.*No space left on device"):
        run(write_config(tmp_path), *SHORT)


def test_in_any_script(capsys):
    @one_line_errors
    def script(error):
        raise error

    for error, words in (
        (OSError(errno.EROFS, "Read-only file system", "a/b.json"), "a/b.json: cannot be written"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "cannot be written (Disk quota exceeded)"),
    ):
        with pytest.raises(SystemExit) as e:
            script(error)
        assert e.value.code == 2 and words in only_error(capsys.readouterr().err)
    with pytest.raises(FileNotFoundError):
        script(FileNotFoundError(errno.ENOENT, "No such file", "a"))


def test_the_fault_behind_an_error_is_found():
    fault = OSError(errno.ENOSPC, "No space left on device")
    hidden = RuntimeError("unexpected pos")
    hidden.__context__ = ValueError()
    hidden.__context__.__cause__ = fault
    assert disk_fault(hidden) is disk_fault(fault) is fault
    assert disk_fault(PermissionError(errno.EACCES, "no")) is disk_fault(RuntimeError()) is None


def test_a_file_is_written_whole_or_stays(tmp_path):
    path = tmp_path / "a.txt"
    with written_whole(path) as f:
        f.write("one")
    with pytest.raises(OSError), written_whole(path) as f:
        f.write("tw")
        raise OSError
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]
