"""A kind of bad data, and what is expected of it."""

import functools
from typing import Callable, NamedTuple

STOPPED, SKIPPED, TRAINED = "stopped", "skipped, counted", "trained"


class Kind(NamedTuple):
    """A way to spoil a data set.

    Attributes:
        place: where it is: "image", "COCO", "COCO, evaluated", "VOC", "VOC, evaluated as VOC" or
            "catalog".
        name: what a reader of the table is told.
        data: CocoData, VocData or CatalogData.
        spoil: changes the data before they are written.
        outcome: what is to become of it: one of the three above.
        words: what the message is to say; none for no message.
        lines: more lines of the config.
        overrides: of the command line.
    """

    place: str
    name: str
    data: type
    spoil: Callable
    outcome: str
    words: tuple
    lines: str
    overrides: tuple


def kinds_of(place, data):
    """A list of kinds of a place, and the decorator that adds one to it."""
    kinds = []

    def kind(name, outcome, *words, lines="", overrides=()):
        def add(spoil):
            kinds.append(Kind(place, name, data, spoil, outcome, words, lines, overrides))
            return spoil

        return add

    return kinds, kind


# --- ways to spoil data --------------------------------------------------------------------


def _found(data, path):
    """The container and the key of a path such as "train.images.1.width"."""
    *way, key = (int(x) if x.isdigit() else x for x in path.split("."))
    return functools.reduce(lambda found, name: found[name], way, vars(data)), key


def put(value, *paths):
    """Sets what is at each path below the attributes of the data."""

    def spoil(data):
        for path in paths:
            found, key = _found(data, path)
            found[key] = value

    return spoil


def drop(path):
    """Removes what is at a path."""

    def spoil(data):
        found, key = _found(data, path)
        del found[key]

    return spoil


def nothing(data):
    """Leaves the data as they are."""
