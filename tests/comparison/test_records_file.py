"""One JSON for each run in a folder: several comparisons share it, and it says what is done."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from helpers.comparisons import make_stage
from sampling_free.comparison.records import Records, pack, read_records
from sampling_free.utils.errors import BadInput


@pytest.fixture
def stage(tmp_path, monkeypatch):
    return make_stage(tmp_path, monkeypatch)


def files(stage):
    return sorted(path.name for path in (stage.folder / "records").glob("*"))


def run(stage, *words):
    return stage.run(*words, "--output", f"{stage.folder}/records/")


def test_each_run_has_a_file_called_as_its_folder(stage):
    run(stage, "--variants", "sampling_free", "focal", "--seeds", "0", "1")
    assert files(stage) == sorted(f"{x.name}.json" for x in (stage.folder / "runs").iterdir())
    assert len(files(stage)) == 4
    for record in read_records(f"{stage.folder}/records"):
        assert record["bbox/AP"] == 40.0 + record["seed"] and record["complete"]
        assert {"digest", "device", "torch", "torchvision", "detectron2"} <= record.keys()
        assert "folder" not in record, "of this machine"
        assert record["course"] == {"iteration": [19, 39], "total_loss": [2.0, 2.0]}


def test_what_is_done_is_taken_from_it_on_another_machine(stage):
    run(stage, "--variants", "sampling_free", "--seeds", "0", "1")
    before = {name: (stage.folder / "records" / name).read_text() for name in files(stage)}
    shutil.rmtree(stage.folder / "runs")
    stage.calls()
    run(stage, "--variants", "sampling_free", "focal", "--seeds", "0", "1")
    trained = [c for c in (x for x in stage.calls()) if "--eval-only" not in c]
    assert len(trained) == 2 and all("focal" in words for words in trained)
    after = {name: (stage.folder / "records" / name).read_text() for name in files(stage)}
    assert len(after) == 4 and after.items() >= before.items()


def test_an_existing_folder_needs_no_slash(stage):
    (stage.folder / "records").mkdir()
    stage.run("--variants", "sampling_free", "--output", f"{stage.folder}/records")
    assert len(files(stage)) == 1


def test_no_pictures_are_drawn_for_it(stage):
    run(stage, "--variants", "sampling_free")
    stage.run("--variants", "sampling_free", "--seeds", "1", "--output", f"{stage.folder}/r.json")
    pictures = [[w for w in call if "num_pictures" in w][-1] for call in stage.calls()]
    assert pictures == ["train.num_pictures=0", "train.num_pictures=4"]


def test_numbers_of_a_course_are_short(tmp_path):
    record = {"folder": "x/a_b", "digest": "d", "course": {"loss": [1.23456789, None, 3]}}
    Records(str(tmp_path)).write([{**record, "precision_recall": {}}])
    (kept,) = read_records(str(tmp_path))
    assert kept == {"digest": "d", "course": {"loss": [1.235, None, 3]}}


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BadInput, match=r"x\.json: is no record"):
        read_records(str(tmp_path))
    with pytest.raises(BadInput, match="no such folder"):
        read_records(str(tmp_path / "absent"))


def test_a_torn_record_is_written_again(stage):
    run(stage, "--variants", "sampling_free")
    (name,) = files(stage)
    (stage.folder / "records" / name).write_text('{"tor')
    run(stage, "--variants", "sampling_free")
    assert json.loads((stage.folder / "records" / name).read_text())["bbox/AP"] == 40.0


def test_a_packed_folder_is_read_and_found_as_the_folder_is(stage):
    words = ["--variants", "sampling_free", "focal", "--seeds", "0", "1"]
    run(stage, *words, "--pack")
    packed = f"{stage.folder}/records.jsonl.gz"
    assert read_records(packed) == read_records(f"{stage.folder}/records")
    again = f"{stage.folder}/again.jsonl.gz"
    Path(pack(f"{stage.folder}/records")).rename(again)
    stage.calls()
    # All is done: nothing is run, on another machine either.
    words += ["--output", again, "--folder", f"{stage.folder}/elsewhere"]
    assert stage.run(*words) == [] and stage.calls() == []
    with pytest.raises(BadInput, match="takes no further runs"):
        stage.run(*words, "--seeds", "0", "1", "2")


def test_summary_and_report_of_a_packed_folder_are_those_of_the_folder(stage, capsys):
    words = ["--variants", "sampling_free", "focal", "--seeds", "0", "1"]
    run(stage, *words, "--pack")
    shown = []
    for output in ("records/", "records.jsonl.gz"):
        page = stage.folder / "page.html"
        capsys.readouterr()
        # The runs are not in this folder: the numbers come from the records alone.
        where = ["--output", f"{stage.folder}/{output}", "--folder", f"{stage.folder}/none"]
        stage.run(*words, *where, "--report", str(page))
        shown.append((capsys.readouterr().out, page.read_text()))
    assert shown[0] == shown[1] and "sampling_free" in shown[0][0]


@pytest.mark.parametrize("line", ["{", "[]", "{}"])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(f'{{"digest": "d"}}\n{line}\n'.encode()))
    with pytest.raises(BadInput, match=r"x\.jsonl\.gz: line 2 is no record"):
        read_records(str(path))
    whole = path.read_bytes()
    for damaged in (whole[:20], whole[:10] + b"\xff" + whole[11:]):  # cut off; no deflate block
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"x\.jsonl\.gz: cannot be read"):
            read_records(str(path))
