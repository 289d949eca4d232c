"""The tables of docs/reliability.md: each from the list of its name in results/reliability.json."""

from tabulate import tabulate

from detector_names import DETECTORS


def bad_data(records):
    """A row for each kind of bad data: what happens, and what the user is told."""
    rows = [[r["place"], r["kind"], r["outcome"], _quoted(r["message"])] for r in records]
    return _table(rows, ["where", "kind", "what happens", "message"])


def interruption(records):
    """A row for each run that was killed again and again."""
    rows = [
        [
            r["name"],
            r["iterations"],
            f"{r['kills']}, {r['while_writing']} of them while a checkpoint was written"
            + (f", {r['while_starting']} before the first" if "while_starting" in r else ""),
            ", ".join("none" if i is None else str(i) for i in r["resumed_from"]),
            ", ".join(f"`{x.lstrip('_')}`" for x in r["compared"]),
        ]
        for r in records
    ]
    head = ["run", "iterations", "kills", "last checkpoint after each", "equal to the last bit"]
    return _table(rows, head)


def long_run(records):
    """A row for each run of 5,000 iterations: what it held at the start and at the end."""
    rows = [
        [
            f"{r['name']}, {r['iterations']:,} iterations",
            f"{r['rss_start_mib']:.1f} to {r['rss_end_mib']:.1f}",
            f"{r['drift_percent']:.2f} % ({r['drift_of_all_percent']:.2f} %)",
            r["bytes_per_iteration"],
            f"{r['values_per_iteration']:.1f}",
            f"{r['handles_start']}, {r['handles_end']}",
            f"{r['threads']}, {r['processes']}",
        ]
        for r in records
    ]
    head = ["run", "memory, MiB", "drift (with the worker)", "bytes an iteration"]
    head += ["values stored an iteration", "open files, start and end", "threads, processes"]
    return _table(rows, head)


def processes(records):
    """A row for each training: how far two processes are from one, of the largest value each."""
    keys = ("losses", "gradients", "weights")
    rows = [
        [r["detector"], r["guide"], r["dtype"], r["steps"]]
        + [f"{r[k]:.0e}" if k in r else "" for k in keys]
        for r in records
    ]
    return _table(rows, ["detector", "guide", "in", "steps", *keys])


def mixed_precision(records):
    """A row for each detector: AP of each seed in each precision; the last is of all pairs."""
    from sampling_free.comparison.summary import paired_difference

    def difference(bfloat16, float32):
        found = paired_difference(bfloat16, float32)
        return "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format(**found)

    rows = []
    for r in records:
        cells = [difference(r["bfloat16"], r["float32"]), _seeds(r["float16"])]
        overflows = ", ".join(
            f"{n} (step {step})" if n else "0"
            for n, step in zip(r["overflows"], r["last_overflows"])
        )
        name = DETECTORS[r["name"]]
        rows.append([name, _seeds(r["float32"]), _seeds(r["bfloat16"]), *cells, overflows])
    pairs = [sum((r[key] for r in records), []) for key in ("bfloat16", "float32")]
    rows.append(["all", "", "", difference(*pairs), "", ""])
    head = ["detector", "float32", "bfloat16", "bfloat16 less float32", "float16"]
    return _table(rows, [*head, "overflows (the last)"])


def _seeds(values):
    return ", ".join(f"{x:.1f}" for x in values)


def _quoted(text, most=150):
    """At most so many letters, as code in a cell of a table."""
    text = text if len(text) <= most else f"{text[: most - 3]}..."
    return text and "`{}`".format(text.replace("|", "\\|").replace("`", "'"))


def _table(rows, head):
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


RELIABILITY_TABLES = {
    f.__name__: f for f in (bad_data, interruption, long_run, processes, mixed_precision)
}
