"""A kind of bad data, and what is expected of it."""

from typing import Callable, NamedTuple

STOPPED, SKIPPED, TRAINED = "stopped", "skipped, counted", "trained"


class Kind(NamedTuple):
    """A way to spoil a data set.

    Attributes:
        place (str): where it is: "image", "COCO", "COCO, evaluated", "VOC",
            "VOC, evaluated as VOC" or "catalog".
        name (str): what a reader of the table is told.
        data (type): CocoData, VocData or CatalogData.
        spoil (callable): changes the data before they are written.
        outcome (str): what is to become of it: one of the three above.
        words (tuple[str]): what the message is to say; none for no message.
        lines (str): more lines of the config.
        overrides (tuple[str]): of the command line.
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
