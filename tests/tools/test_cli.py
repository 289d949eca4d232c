"""Every script that takes a config takes the same options, in the same words, with the same result.

tools/compare.py turns one config into several --variants, and so has no --variant for all.
"""

import importlib
import re
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from helpers import tiny_run
from sampling_free import cli
from sampling_free.comparison import plan

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {  # what a script wants beside the config
    "train_net": (),
    "demo": ("--input", "a.jpg", "--output", "out"),
    "check_imbalance": (),
    "estimate_prior": (),
    "pick_threshold": ("--resume",),
    "compare": ("--variants", "sampling_free"),
}
ONE_CONFIG = [name for name in NEEDED if name != "compare"]
YAML, LAZY = "COCO-Detection/retinanet_R_50_FPN_1x.yaml", "COCO-Detection/retinanet_R_50_FPN_1x.py"
MISSING = "error: --config-file is missing, e.g. --config-file configs/demo/retinanet.py\n"


class Read(Exception):
    """A config was to be read."""


@pytest.fixture
def called(monkeypatch, capsys, tmp_path):
    """Calls a script by its name; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(name, *words):
        script = importlib.import_module(name)
        # Its handler would outlive the stream that the test gives it.
        monkeypatch.setattr(script, "setup_logger", lambda *a, **k: None, raising=False)
        return tiny_run.call_main(script, [f"{name}.py", *words], monkeypatch, capsys)

    return call


@pytest.fixture
def read(called, monkeypatch):
    """What a script hands to :func:`load_config`: file, overrides, sampling_free, variant."""

    def load(path, overrides=(), sampling_free=False, variant=None):
        raise Read(path, list(overrides), sampling_free, variant)

    monkeypatch.setattr(cli, "load_config", load)
    monkeypatch.setattr(plan, "load_config", load)

    def what(name, *words):
        with pytest.raises(Read) as e:
            called(name, *words)
        return e.value.args

    return what


def test_no_script_with_a_config_is_missing_here():
    folders = (ROOT, ROOT / "tools", ROOT / "benchmarks")
    scripts = {path.stem: path.read_text() for folder in folders for path in folder.glob("*.py")}
    takes = re.compile(r"add_config_options|argument_parser|add_argument\(\s*.--config").search
    found = {name for name, text in scripts.items() if takes(text)}
    assert found == NEEDED.keys()


@pytest.mark.parametrize("name", NEEDED)
def test_the_help_has_the_same_words(name, called):
    parser = ArgumentParser(add_help=False)
    cli.add_config_options(parser, variants=name != "compare")
    code, out, _ = called(name, "--help")
    shown = "".join(out.split())
    assert code == 0 and len(parser._actions) == (3 if name == "compare" else 5)
    for action in parser._actions:
        left = " ".join(action.option_strings[:1] + [action.metavar or ""])
        assert "".join(f"{left} {action.help}".split()) in shown


# Each with what is in front of the script's own options, what is behind them, and what is read.
FORMS = {
    "no override": ("", "", []),
    "key=value in front": ("a.b=1 --config-file F", "", ["a.b=1"]),
    "behind": ("", "a.b=1 c=[1,2]", ["a.b=1", "c=[1,2]"]),
    "on both sides": ("x=1", "y=2", ["x=1", "y=2"]),
    "behind a flag": ("--allow-pickle x=1", "", ["x=1", "train.allow_pickle=True"]),
    "KEY VALUE": ("SEED 3", "SOLVER.BASE_LR -1e-3", ["SEED", "3", "SOLVER.BASE_LR", "-1e-3"]),
    "KEY=VALUE": ("SEED=3", "MODEL.DEVICE=cpu", ["SEED=3", "MODEL.DEVICE=cpu"]),
    "both": ("a=1 SEED 3", "b=2", ["a=1", "SEED", "3", "b=2"]),
}


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("form", FORMS)
def test_overrides_stand_anywhere(name, form, read):
    before, behind, overrides = FORMS[form]
    found = read(name, *before.split(), "--config-file", YAML, *NEEDED[name], *behind.split())
    assert found[0].endswith(YAML) and found[1] == overrides


@pytest.mark.parametrize("name", ONE_CONFIG)
def test_variants(name, read):
    words = "--config-file", YAML, *NEEDED[name]
    assert read(name, *words)[2:] == (False, None)
    assert read(name, "--variant", "focal", *words)[2:] == (False, "focal")
    assert read(name, *words, "--sampling-free", "SEED=3")[1:] == (["SEED=3"], True, None)


@pytest.mark.parametrize("name", NEEDED)
def test_mistakes_are_one_line(name, called):
    assert called(name, *NEEDED[name])[::2] == (2, MISSING)
    code, _, err = called(name, "--config-file", YAML, *NEEDED[name], "--bogus", "a.b=1")
    assert code == 2 and err.endswith(f"{name}.py: error: unrecognized arguments: --bogus\n")
    code, _, err = called(name, "--config-file", "absent.py", *NEEDED[name])
    assert code == 2 and err == "error: absent.py: no such config file\n"


@pytest.mark.parametrize("name", NEEDED)
def test_a_config_of_the_zoo_is_found_and_its_overrides_are_checked(name, called):
    for words, line in (
        ((YAML, "SOLVER.MAX_ITR", "3"), "did you mean SOLVER.MAX_ITER?"),
        ((YAML, "train.max_itr=3"), "did you mean train.max_iter?"),
        ((LAZY, "train.max_itr=3"), "did you mean train.max_iter?"),
        ((LAZY, "SOLVER.MAX_ITER", "3"), "'SOLVER.MAX_ITER' is no override: write key=value"),
    ):
        code, _, err = called(name, *NEEDED[name], "--config-file", *words)
        assert code == 2 and line in tiny_run.only_error(err)


def test_what_is_there_as_a_file_is_no_override(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=1.jpg").touch()
    Path("TEST").mkdir()
    parser = default_argument_parser()
    cli.add_config_options(parser)
    parser.add_argument("--input", nargs="+")
    words = "--input b=1 a=1.jpg TEST c=1 SEED 3 --res d=1 --eval-only e=1 --input=f=1 g=1"
    monkeypatch.setattr(sys, "argv", ["x.py", *words.split()])
    args = cli.parse(parser)
    assert args.input == ["f=1"] and args.resume and args.eval_only
    assert args.opts == ["d=1", "c=1", "SEED", "3", "e=1", "g=1"]
    args = cli.parse(parser, words.split()[:7])
    assert args.input == ["b=1", "a=1.jpg", "TEST"] and args.opts == ["c=1", "SEED", "3"]
