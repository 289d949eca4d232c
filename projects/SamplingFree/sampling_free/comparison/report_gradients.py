"""The sections of a report on gradient magnitudes, as the monitor logs them."""

from . import report_figures as figures
from . import report_page as page
from .report_curves import course, head_of
from .report_variant import PATTERNS, course_keys, courses_of, legend, section, without

OTHER = "#777777"
PARTS = {"": "-", "/foreground": "--", "/background": ":"}  # of a classification, and its dash


def gradients(variants):
    """Sections: gradient magnitudes at the outputs and at the features, and their ratio."""
    return [
        *_magnitudes(
            variants,
            "outputs",
            "Gradients at the outputs",
            "How strongly each loss pulls at what its head puts out: L1 norm of its gradient.",
            "L1 norm",
        ),
        *_magnitudes(
            variants,
            "features",
            "Gradients at the features",
            "The same at the feature maps that all losses share: L2 norm.",
            "L2 norm",
        ),
        *_ratios(variants),
    ]


def _magnitudes(variants, place, title, sentence, ylabel):
    prefix = f"monitor/{place}/"
    keys = [k for k in course_keys(variants) if k.startswith(prefix)]
    terms = list(dict.fromkeys(k[len(prefix) :].split("/")[0] for k in keys))
    heads = {}
    for term in terms:
        heads.setdefault(head_of(term), []).append(term)
    body = []
    for head, of_head in heads.items():
        lines = [(v, _lines(v, prefix, of_head)) for v in variants]
        ylim = figures.limits([line for _, ls in lines for line in ls])
        found = [(v.name, figures.svg(figures.courses(ls, ylabel, ylim))) for v, ls in lines if ls]
        if found:
            body += [page.small_heading(f"{head}: {', '.join(of_head)}"), page.grid(found)]
    return section(
        title,
        f"{sentence} Bad: a classification (colored) many times as large as the localization "
        "(black), or a background part that buries the foreground part, above all at the start. "
        "The figures of a head have one scale.",
        [_legend(), *body] if body else [],
        without(variants, "gradient magnitudes", lambda run: _has(run, prefix)),
    )


def _lines(variant, prefix, terms):
    """list[Line]: of one variant; classification is colored, localization black."""
    looks = []
    for term in terms:
        if "cls" in term:
            looks += [(f"{term}{part}", variant.color, dash) for part, dash in PARTS.items()]
        else:
            is_box = "loc" in term or "box" in term
            looks.append((term, "#000000" if is_box else OTHER, "-"))
    lines = []
    for key, color, dash in looks:
        line = variant.line(lambda run, key=key: course(run, prefix + key))
        lines += [line._replace(color=color, dash=dash)] if line else []
    return lines


def _ratios(variants):
    prefix = "monitor/ratio/"
    keys = [k for k in course_keys(variants) if k.startswith(prefix)]
    label = "classification / localization"
    found = [(k[len(prefix) :], s) for k in keys if (s := courses_of(variants, k, label))]
    return section(
        "Classification gradient over localization gradient",
        "The two magnitudes at the outputs, one divided by the other. Bad: far above 1, where the "
        "classification drowns the localization, or jumping. A guide makes the losses equal, not "
        "their gradients: 1 itself is no aim.",
        [legend(variants), page.grid(found)] if found else [],
        without(variants, "ratio", lambda run: _has(run, prefix)),
    )


def _legend():
    color = figures.COLORS[0]
    return page.legend(
        [
            ("classification, in the variant's color", color, PATTERNS["-"]),
            ("its foreground part", color, PATTERNS["--"]),
            ("its background part", color, PATTERNS[":"]),
            ("localization", "#000000", PATTERNS["-"]),
            ("other losses", OTHER, PATTERNS["-"]),
        ]
    )


def _has(run, prefix):
    return any(course(run, k) for k in run.get("course") or {} if k.startswith(prefix))
