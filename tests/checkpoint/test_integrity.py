"""A last checkpoint that is torn is noticed, named, and the one before it is resumed."""

import os
import shutil

import pytest
import torch

from helpers.tiny_run import load, log_lines, metrics, run, run_until, same, trainer, write_config
from sampling_free.checkpoint.checkpointer import load_trained
from sampling_free.checkpoint.integrity import fault_of, newest_whole
from sampling_free.utils.errors import BadInput

MAX_ITER = "train.max_iter=9"


def saved(path):
    torch.save({"model": {"a": torch.arange(5000.0)}, "iteration": 3}, path)
    return path


def zeroed(path):
    """A block that was never written, in the middle of the numbers."""
    data = bytearray(path.read_bytes())
    data[9000:13000] = bytes(4000)
    path.write_bytes(data)


def scribbled(offset, what):
    """Another beginning of the last entry of the list of files."""

    def scribble(path):
        data = bytearray(path.read_bytes())
        start = data.rindex(b"PK\x01\x02") + offset
        data[start : start + len(what)] = what
        path.write_bytes(data)

    return scribble


TEARS = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": zeroed,
    "no text": scribbled(46, b"\xff\xff"),
    "encrypted": scribbled(8, b"\x01\x08"),
    "empty": lambda path: path.write_bytes(b""),
    "absent": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("tear", TEARS)
def test_every_tear_is_noticed(tmp_path, tear):
    path = saved(tmp_path / "model_0000003.pth")
    assert fault_of(path) is None
    TEARS[tear](path)
    assert ("no such checkpoint" if tear in ("absent", "a folder") else "not a readable") in (
        fault_of(path)
    )


@pytest.mark.parametrize("tear", ["zeros", "a folder"])
def test_weights_that_are_torn_are_refused_not_replaced(tmp_path, tear):
    path = saved(tmp_path / "model_0000003.pth")
    saved(tmp_path / "model_0000002.pth")
    TEARS[tear](path)
    with pytest.raises(BadInput, match=f"^{path}: no"):
        load_trained(torch.nn.Linear(2, 2), str(path))


def test_the_one_before_is_the_one_that_was_written_last(tmp_path):
    names = ["model_0000005", "model_best", "model_0000002", "backbone"]
    for i, name in enumerate(names):
        os.utime(saved(tmp_path / f"{name}.pth"), (1000 + i, 1000 + i))
    last = str(tmp_path / "model_0000008.pth")
    assert newest_whole(last) == (str(tmp_path / "model_0000002.pth"), "no such checkpoint")
    TEARS["half"](tmp_path / "model_0000002.pth")
    assert newest_whole(last)[0] == str(tmp_path / "model_best.pth")
    saved(tmp_path / "model_0000008.pth")
    assert newest_whole(last) == (last, None)


def test_a_folder_name_is_no_pattern(tmp_path):
    folder = tmp_path / "lr[0.1]*"
    folder.mkdir()
    saved(folder / "model_0000002.pth")
    assert newest_whole(str(folder / "model_0000005.pth"))[0] == str(folder / "model_0000002.pth")


def test_none_is_whole(tmp_path):
    TEARS["half"](saved(tmp_path / "model_0000002.pth"))
    with pytest.raises(BadInput, match="model_0000005.pth: no such.* no other.*init_checkpoint"):
        newest_whole(str(tmp_path / "model_0000005.pth"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of 9 iterations, and the folder of one that ended in its eighth: checkpoints 2, 5."""
    whole, folder = (tmp_path_factory.mktemp(name) for name in ("whole", "stopped"))
    run(write_config(whole), MAX_ITER)
    run_until(7, write_config(folder), MAX_ITER)
    return whole, folder


@pytest.mark.parametrize("tear", ["half", "zeros", "absent"])
def test_a_run_goes_on_from_the_one_before(stopped, tmp_path, tear):
    whole, folder = stopped
    config = write_config(tmp_path)
    shutil.copytree(folder / "out", tmp_path / "out")
    TEARS[tear](tmp_path / "out" / "model_0000005.pth")
    leftover = tmp_path / "out" / "model_0000008.unfinished.pth"
    leftover.write_bytes(b"half")
    with log_lines() as lines:
        resumed = run(config, MAX_ITER, resume=True)
    (line,) = (x for x in lines if "resumed from the one before it" in x)
    assert "model_0000005.pth: " in line and line.endswith("model_0000002.pth")
    assert resumed.start_iter == 3 and not leftover.exists()
    a, b = (load(x / "out" / "model_final.pth") for x in (whole, tmp_path))
    assert same(a["model"], b["model"]) and same(a["trainer"], b["trainer"])
    assert same(metrics(whole / "out"), metrics(tmp_path / "out"))


def test_what_the_tag_names_may_itself_be_torn(stopped, tmp_path):
    config = write_config(tmp_path)
    shutil.copytree(stopped[1] / "out", tmp_path / "out")
    (tmp_path / "out" / "last_checkpoint").write_text("")
    assert trainer(config, MAX_ITER, resume=True).start_iter == 6
