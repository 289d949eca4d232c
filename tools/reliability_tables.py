"""The tables of docs/reliability.md: each from the list of its name in results/reliability.json."""

from tabulate import tabulate


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
            f"{r['kills']}, {r['while_writing']} of them while a checkpoint was written",
            ", ".join(map(str, r["resumed_from"])),
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


def _quoted(text, most=150):
    """At most so many letters, as code in a cell of a table."""
    text = text if len(text) <= most else f"{text[: most - 3]}..."
    return text and "`{}`".format(text.replace("|", "\\|").replace("`", "'"))


def _table(rows, head):
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


RELIABILITY_TABLES = {f.__name__: f for f in (bad_data, interruption, long_run)}
