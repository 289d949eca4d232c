"""The rooms of the package: what may import what, and what importing it takes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sampling_free

PACKAGE = Path(sampling_free.__file__).parent
# A room imports from those above it in this list alone.
ROOMS = [
    "utils",
    "method",
    "data",
    "evaluation",
    "detectors",
    "baselines",
    "counting",
    "checkpoint",
    "config",
    "diagnosis",
    "engine",
    "comparison",
    "cli",
]


def rooms_imported(path):
    """Names of the rooms that a file of the package imports from."""
    package = ("sampling_free", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            whole = [*base, *(node.module or "").split(".")]
            modules = [[*filter(None, whole), alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        else:
            continue
        yield from (m[1] for m in modules if m[0] == "sampling_free" and len(m) > 1)


def test_every_module_is_in_a_room():
    there = {x.stem for x in PACKAGE.iterdir() if x.suffix == ".py" or (x / "__init__.py").exists()}
    assert there == {*ROOMS, "__init__", "_moved"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_those_above_it(room):
    files = list((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]
    known = {*ROOMS[: ROOMS.index(room) + 1]}
    found = {(str(f.relative_to(PACKAGE)), r) for f in files for r in rooms_imported(f)}
    assert found or room == "utils"
    assert not [pair for pair in found if pair[1] not in known]


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_the_method_needs_no_detectron2():
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "from sampling_free.method import sigmoid_bce_all, optimal_prior, guided_losses\n"
        "print(optimal_prior(3, 100, 2))"
    )
    assert float(run(code)) == pytest.approx(3 / 200)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, sampling_free; print({'torch', 'detectron2'} & set(sys.modules))"
    assert run(code).strip() == "set()"


def test_every_public_name_is_there():
    for name in sampling_free.__all__:
        assert getattr(sampling_free, name) is not None
    assert set(sampling_free.__all__) == set(dir(sampling_free))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sampling_free.nothing


@pytest.mark.parametrize("old", ["loader", "yaml_config", "prior_init", "processes"])
def test_an_old_name_is_the_same_module(old):
    code = (
        f"import sampling_free.{old} as old, sys\n"
        "print(sys.modules[old.__name__] is old, old.__spec__.name == old.__name__)"
    )
    assert run(code).split() == ["True", "True"]
