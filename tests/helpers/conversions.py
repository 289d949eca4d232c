"""Configs converted in both ways."""

import re

from sampling_free import convert

MEASURED = "  MODEL.SAMPLING_FREE.PRIOR: None, measured before the first iteration"


def converted(cfg, capsys, **kwargs):
    """The result and the printed changes as {key: (old, new)}.

    What is there and no longer used has "(unused)" for new.
    """
    capsys.readouterr()
    result = convert(cfg, **kwargs)
    out, err = capsys.readouterr()
    assert err == ""
    if kwargs.get("quiet"):
        assert out == ""
        return result, {}
    first, *rest = out.splitlines()
    assert first == "Made sampling-free:"
    changes = {}
    for line in rest:
        if line in ("  nothing left to change", MEASURED):
            continue
        key, old, new = re.fullmatch(r"  ([\w.\[\]]+): (.*) -> (.*)", line).groups()
        assert key not in changes and old != new
        changes[re.sub(r"\[(\d+)\]", r".\1", key)] = old, new
    return result, changes
