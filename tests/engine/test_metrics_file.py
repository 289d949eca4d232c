"""metrics.json of a resumed run: what will be written again is taken out, the rest stays."""

import json

import pytest

from sampling_free.engine.metrics_file import cut, put_aside


def line(iteration, **values):
    return json.dumps({"iteration": iteration, **values}) + "\n"


def loss(iteration):
    return line(iteration, total_loss=1.5, lr=0.1)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "metrics.json"

    def write(*lines):
        path.write_text("".join(lines))
        return path

    return write


def test_what_comes_after_the_checkpoint_is_taken_out(file):
    path = file(loss(1), loss(3), loss(5), loss(7))
    assert cut(path, 5) == 3
    assert path.read_text() == loss(1) + loss(3)


def test_the_evaluation_at_the_end_of_a_shorter_run_stays(file):
    score = line(6, **{"bbox/AP": 3.0})
    path = file(loss(5), score)
    assert cut(path, 6, end=6) == 5
    assert path.read_text() == loss(5) + score


def test_an_evaluation_that_is_done_again_does_not_stay(file):
    path = file(loss(5), line(6, **{"bbox/AP": 3.0}), loss(8))
    assert cut(path, 6) == cut(path, 6, end=9) == 5
    assert path.read_text() == loss(5)


@pytest.mark.parametrize("torn", [loss(5)[:-1], loss(5)[:9], "", "\n", "[]\n", "\x00\x00\n", "3\n"])
def test_a_torn_line_is_taken_out(file, torn):
    path = file(loss(1), loss(3), torn)
    assert cut(path, 9) == 3
    assert path.read_text() == loss(1) + loss(3)


def test_the_file_of_a_run_without_a_checkpoint_is_kept_under_another_name(file):
    for n in (1, 2):
        put_aside(file(loss(n)))
    path = file()
    put_aside(path)  # there is nothing in it
    folder = path.parent
    found = {p.name: p.read_text() for p in folder.iterdir()}
    assert found == {"metrics.json": "", "metrics.json.1": loss(1), "metrics.json.2": loss(2)}
    put_aside(folder / "none.json")
    assert len(list(folder.iterdir())) == 3
