"""Bad data: each kind ends as the table of docs/reliability.md says, and nothing is lost unsaid."""

import math

import pytest

from helpers.bad_data import KINDS, SKIPPED, STOPPED, TRAINED, happens, make, used
from helpers.bad_kind import Kind
from helpers.sound_data import CatalogData, CocoData, VocData

SOUND = [
    Kind("", "sound", data, lambda data: None, TRAINED, (), "", ())
    for data in (CocoData, VocData, CatalogData)
]


@pytest.mark.parametrize("kind", SOUND, ids=lambda kind: kind.data.__name__)
def test_sound_data_are_trained_on_without_a_word(kind, tmp_path):
    data, config = make(kind, tmp_path)
    found = happens(config, tmp_path)
    assert found[:2] == (TRAINED, "") and len(found.losses) >= 3
    assert used(config) == data.num_written() == (4, 8)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.place}: {kind.name}")
def test_kind(kind, tmp_path):
    data, config = make(kind, tmp_path)
    before = files(tmp_path)
    found = happens(config, tmp_path, kind.overrides)
    assert found.outcome == kind.outcome, found.message
    assert all(words in found.message for words in kind.words), found.message
    assert bool(found.message) == bool(kind.words), found.message
    written = [p for p in files(tmp_path) - before if tmp_path / "out" not in p.parents]
    assert written == [], "output has left its folder"
    if kind.outcome == STOPPED:
        is_image = "mend or remove it" in found.message  # the others are known before the training
        assert is_image or not (tmp_path / "out" / "metrics.json").exists()
        return
    assert found.losses and all(map(math.isfinite, found.losses))
    images, objects = (a - b for a, b in zip(data.num_written(), used(config, kind.overrides)))
    assert found.skipped == {"images": images, "objects": objects}
    assert (images + objects > 0) == (kind.outcome == SKIPPED)


def test_the_kinds_have_names_of_their_own():
    names = [(kind.place, kind.name) for kind in KINDS]
    assert len(set(names)) == len(names) >= 20


def files(folder):
    return {p for p in folder.rglob("*") if p.is_file()}
