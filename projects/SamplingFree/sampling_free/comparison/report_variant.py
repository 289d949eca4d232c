"""What the sections of a report share: a variant with its color, and the frame of a section."""

from typing import NamedTuple

from . import report_figures as figures
from . import report_page as page
from .report_curves import course, keys_of

PATTERNS = {"-": "none", "--": "6 4", ":": "2 3", "-.": "8 3 2 3"}  # of a dash, in SVG


class Variant(NamedTuple):
    """What is compared with others.

    Attributes:
        name (str):
        runs (list[dict]): records, one for each seed.
        color, dash (str): of its lines.
    """

    name: str
    runs: list
    color: str
    dash: str

    @classmethod
    def number(cls, n, name, runs):
        """The variant at place ``n``, counted from 0, in the color of that place."""
        return cls(name, runs, *figures.color_of(n))

    def line(self, curve_of):
        """Line or None: of the runs for which ``curve_of(run)`` is a curve."""
        curves = [c for run in self.runs if (c := curve_of(run)) is not None]
        return figures.Line(curves, self.color, self.dash) if curves else None


def section(title: str, text: str, body: list[str], absent: list[str]) -> list[str]:
    """A heading, one plain sentence or two, what is missing, and the figures.

    Args:
        title, text: text is what is seen, and what would be good.
        body: HTML; where it is empty only the heading and what is missing are left.
        absent: of :func:`without`.

    Returns:
        HTML.
    """
    text = [page.paragraph(text)] if body else []
    return [page.heading(title), *text, *absent, *body]


def without(variants, what, has):
    """list[str]: a line that names the runs without ``what``; empty where all have it."""
    names = []
    for v in variants:
        seeds = [str(r.get("seed")) for r in v.runs if not has(r)]
        if seeds:
            every = len(seeds) == len(v.runs)
            names.append(v.name if every else f"{v.name} (seed {', '.join(seeds)})")
    none = not any(has(r) for v in variants for r in v.runs)
    return [page.missing(f"{what} of {'every run' if none else '; '.join(names)}")] if names else []


def legend(variants):
    """str: HTML, the colors of the variants."""
    return page.legend([(v.name, v.color, PATTERNS[v.dash]) for v in variants])


def course_keys(variants):
    """list[str]: every key of the courses of all runs."""
    return keys_of([run for v in variants for run in v.runs], "course")


def courses_of(variants, key, ylabel):
    """str or None: the SVG of one number of all variants; None where no run has it."""
    lines = [x for v in variants if (x := v.line(lambda run: course(run, key)))]
    if not lines:
        return None
    return figures.svg(figures.courses(lines, ylabel, figures.limits(lines)))
