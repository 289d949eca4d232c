"""Files from elsewhere: weights run no code, names lead nowhere, and a page shows text as text."""

import argparse
import ast
import os
import pickle
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch import nn
from torch.torch_version import TorchVersion

import check_imbalance
import demo
import pick_threshold
import train_net
from helpers.drawn_detector import Detector
from helpers.evil_pickles import Evil, of_python_2
from helpers.made_up_runs import made_up_run
from helpers.tiny_run import (
    FOCAL,
    REPO,
    call_main,
    log_lines,
    only_error,
    run,
    run_until,
    trainer,
    write_config,
)
from helpers.yaml_files import zoo
from sampling_free.checkpoint import checkpointer as checkpoint
from sampling_free.checkpoint.checkpointer import NamingCheckpointer, load_trained
from sampling_free.comparison.report import write_report
from sampling_free.config.cfg_node import lazy_from_cfg_node
from sampling_free.config.load import load_config
from sampling_free.diagnosis import check as preflight
from sampling_free.evaluation.pictures import save_prediction_pictures
from sampling_free.utils.errors import BadInput

WAY_OUT = "--allow-pickle, or train.allow_pickle=True"


def arrays(model):
    return {k: v.numpy() for k, v in model.state_dict().items()}


def write(path, content, **kwargs):
    """As the file's ending has it."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, kwargs.get("protocol", 2)))
    else:
        torch.save(content, path, **kwargs)
    return str(path)


def evil_file(folder, ending, **kwargs):
    """Whole weights of a Linear(3, 2) that make the folder "made" when they are loaded."""
    model = nn.Linear(3, 2)
    state = arrays(model) if ending == ".pkl" else model.state_dict()
    evil = Evil(folder / "made")
    content = {"model": state, "model_state": state, "__author__": "x", "more": evil}
    return write(folder / f"evil{ending}", content, **kwargs)


def refusal(function, *args, **kwargs):
    with pytest.raises(BadInput) as e:
        function(*args, **kwargs)
    assert len(str(e.value).splitlines()) == 1
    return str(e.value)


class TestWeights:
    ENDINGS = [".pkl", ".pth", ".pyth"]

    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("load", [load_trained, lambda m, p: NamingCheckpointer(m).load(p)])
    def test_that_run_code_are_refused_and_run_none(self, tmp_path, ending, load, monkeypatch):
        own = torch.load
        monkeypatch.setattr(  # its default before 2.6
            torch, "load", lambda *args, **kwargs: own(*args, **{"weights_only": False, **kwargs})
        )
        path, model = evil_file(tmp_path, ending), nn.Linear(3, 2)
        before = model.weight.detach().clone()
        line = refusal(load, model, path)
        assert line.startswith(f"{path}: refused, as ") and line.endswith(WAY_OUT)
        assert f"{os.mkdir.__module__}.mkdir in it could run code" in line
        assert not (tmp_path / "made").exists() and torch.equal(model.weight, before)

    @pytest.mark.parametrize("ending", [".pkl", ".pth"])
    def test_that_are_trusted_are_loaded(self, tmp_path, ending):
        path = evil_file(tmp_path, ending)
        NamingCheckpointer(nn.Linear(3, 2), allow_pickle=True).load(path)
        assert (tmp_path / "made").exists()  # so the others would have made it

    def test_of_the_old_format_of_pytorch_are_no_way_in(self, tmp_path):
        path = evil_file(tmp_path, ".pth", _use_new_zipfile_serialization=False)
        assert WAY_OUT in refusal(NamingCheckpointer(nn.Linear(3, 2)).load, path)
        assert not (tmp_path / "made").exists()

    def test_in_a_file_of_another_ending_are_no_way_in(self, tmp_path):
        path = Path(evil_file(tmp_path, ".pkl"))
        for ending in (".pth", ".pt", ""):
            other = path.with_name(f"other{ending}")
            other.write_bytes(path.read_bytes())
            refusal(NamingCheckpointer(nn.Linear(3, 2)).load, str(other))
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize("form", ["zoo", "caffe2", "imagenet"])
    def test_in_the_forms_of_detectrons_zoos_are_read(self, tmp_path, protocol, form):
        model, content = nn.Linear(3, 2), arrays(nn.Linear(3, 2))
        expected = content["weight"]
        if form == "zoo":
            content = {"model": content, "__author__": "Detectron2 Model Zoo"}
        else:  # a classifier's last layer has the name of Detectron1 there
            content = {"weight": content["weight"], "bias": content["bias"], "lr_momentum": 0.1}
            content = {"blobs": content, "cfg": "a: 1"} if form == "caffe2" else content
        path = write(tmp_path / "zoo.pkl", content, protocol=protocol)
        NamingCheckpointer(model).load(path)
        assert np.array_equal(model.weight.detach(), expected)

    def test_of_python_2_are_read(self, tmp_path):
        model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(2))})
        (tmp_path / "old.pkl").write_bytes(of_python_2())
        NamingCheckpointer(model).load(str(tmp_path / "old.pkl"))
        assert model["w"].tolist() == [1.5, -2.5]

    def test_beside_a_class_of_somebody_are_read_if_they_are_trusted(self, tmp_path):
        content = {"model": nn.Linear(3, 2).state_dict(), "args": argparse.Namespace(lr=0.1)}
        path = write(tmp_path / "theirs.pth", content)
        line = refusal(NamingCheckpointer(nn.Linear(3, 2)).load, path)
        assert "argparse.Namespace in it" in line and line.endswith(WAY_OUT)
        rest = NamingCheckpointer(nn.Linear(3, 2), allow_pickle=True).load(path)
        assert rest["args"].lr == 0.1

    def test_with_values_of_numpy_are_read_where_the_line_says_so(self, tmp_path):
        content = {"model": arrays(nn.Linear(3, 2)), "epoch": np.float64(3), "__author__": "x"}
        NamingCheckpointer(nn.Linear(3, 2)).load(write(tmp_path / "a.pkl", content))
        for more in ({"epoch": np.float64(3)}, {"mean": np.ones(3)}):
            content = {"model": nn.Linear(3, 2).state_dict(), **more}
            path = write(tmp_path / "a.pth", content)
            line = refusal(NamingCheckpointer(nn.Linear(3, 2)).load, path)
            assert "numpy" in line and "tensors, Python's numbers and plain containers are" in line

    def test_of_an_old_pytorch_are_warned_of_once(self, tmp_path, monkeypatch):
        content = {"model": nn.Linear(3, 2).state_dict()}
        path = write(tmp_path / "a.pth", content)
        write(tmp_path / "a.pyth", {"model_state": content["model"]})
        pkl = write(tmp_path / "a.pkl", {"model": arrays(nn.Linear(3, 2)), "__author__": "x"})

        def warnings(version, *paths, save_dir="", **kwargs):
            checkpoint._warn_of_old_pytorch.cache_clear()
            monkeypatch.setattr(torch, "__version__", TorchVersion(version))
            with log_lines() as lines:
                for path in paths:
                    NamingCheckpointer(nn.Linear(3, 2), save_dir, **kwargs).load(path)
            return lines

        for version in ("2.3.1+cu121", "2.5.1", "2.9.0"):
            (line,) = warnings(version, path, path, str(tmp_path / "a.pyth"))
            assert f"PyTorch {version}: a forged file could run code" in line
        (line,) = warnings("2.5.1", str(tmp_path / "a.pyth"))
        assert not warnings("2.5.1", pkl)
        assert not warnings("2.5.1", path, allow_pickle=True)
        assert not warnings("2.5.1", path, save_dir=str(tmp_path))  # the run's own
        assert not warnings("2.10.0", path) and not warnings("2.11.0+cu130", path)

    def test_that_are_torn_are_not_recommended(self, tmp_path):
        path = Path(write(tmp_path / "torn.pth", {"model": nn.Linear(3, 2).state_dict()}))
        for content in (path.read_bytes()[:-99], b"text", b""):
            path.write_bytes(content)
            line = refusal(NamingCheckpointer(nn.Linear(3, 2)).load, str(path))
            assert "not a readable checkpoint" in line and "allow" not in line

    def test_after_a_refusal_the_checkpointer_loads_others(self, tmp_path):
        checkpointer = NamingCheckpointer(nn.Linear(3, 2))
        refusal(checkpointer.load, evil_file(tmp_path, ".pth"))
        checkpointer.load(write(tmp_path / "a.pth", {"model": nn.Linear(3, 2).state_dict()}))


ADAM = "\nimport torch\noptimizer._target_ = torch.optim.AdamW\ndel optimizer['momentum']\n"
GHM = FOCAL + "\nfrom sampling_free import GHMRetinaNet\nmodel._target_ = GHMRetinaNet\n"
OWN = {
    "plain": (),
    "frozen guide": ("model.guide=frozen",),
    "prior of each class": ("model.prior=per_class",),
    "list": ("model.prior=[0.1,0.1,0.1,0.1,0.1]",),
    "float16": ("train.amp.enabled=True", "train.clip_gradients.enabled=True"),
    "best": ("train.best_metric=bbox/AP", "train.eval_period=2"),
}


@pytest.mark.parametrize("kind", [*OWN, "adam", "focal", "ghm"])
def test_our_own_checkpoints_are_plain_and_resumed(tmp_path, kind):
    config = write_config(tmp_path, {"adam": ADAM, "focal": FOCAL, "ghm": GHM}.get(kind, ""))
    options = OWN.get(kind, ())
    run_until(4, config, *options)
    saved = sorted((tmp_path / "out").glob("*.pth"))
    assert [torch.load(path, weights_only=True)["iteration"] for path in saved][0] == 2
    assert run(config, *options, resume=True).start_iter >= 3


@pytest.fixture
def main(monkeypatch, capsys):
    """Runs a script in this process; returns the exit code, stdout and stderr."""
    for script in (train_net, pick_threshold, check_imbalance):
        monkeypatch.setattr(script, "setup_logger", lambda *args, **kwargs: None)
    monkeypatch.setattr(train_net, "default_setup", lambda cfg, args: None)

    def call(script, *words):
        return call_main(script, [f"{script.__name__}.py", *words], monkeypatch, capsys)

    return call


def words_of(script, config, weights, folder):
    """A command that loads these weights."""
    if script is demo:
        Image.new("RGB", (64, 64)).save(folder / "in.png")
        files = ["--input", folder / "in.png", "--output", folder / "drawn", "--weights", weights]
        return ["--config-file", config, *files]
    evaluates = ["--eval-only"] if script is train_net else []
    return ["--config-file", config, *evaluates, f"train.init_checkpoint={weights}"]


@pytest.mark.parametrize("script", [train_net, demo, pick_threshold, check_imbalance])
@pytest.mark.parametrize("ending", [".pkl", ".pth"])
def test_every_script_that_loads_weights_refuses_them_unless_told(tmp_path, main, script, ending):
    config = write_config(tmp_path)
    model = trainer(config, "model.prior=0.01").model
    state = arrays(model) if ending == ".pkl" else model.state_dict()
    prior = {"prior": 0.01, "estimate": None}
    content = {"model": state, "__author__": "x", "prior": prior, "more": Evil(tmp_path / "made")}
    weights = write(tmp_path / f"evil{ending}", content)
    words = words_of(script, config, weights, tmp_path)
    code, _, err = main(script, *words)
    assert code == 2 and f"{weights}: refused" in only_error(err) and WAY_OUT in err
    assert not (tmp_path / "made").exists()
    flag = words.index("--config-file")
    with log_lines():
        code, _, err = main(script, *words[:flag], "--allow-pickle", *words[flag:])
    assert code == 0 and (tmp_path / "made").exists(), err


def test_a_config_can_say_that_all_is_trusted(tmp_path):
    path = evil_file(tmp_path, ".pth")
    config = write_config(tmp_path, "\ntrain.allow_pickle = True\n")
    assert "architecture" in refusal(trainer, config, f"train.init_checkpoint={path}")
    assert (tmp_path / "made").exists()
    assert "train.allow_pickle" in refusal(load_config, config, ["train.allow_pickle=maybe"])


def test_a_url_of_weights_that_are_refused_is_not_taken_for_one_out_of_reach(tmp_path, monkeypatch):
    path = evil_file(tmp_path, ".pkl")
    local = PathManager.get_local_path
    monkeypatch.setattr(
        PathManager, "get_local_path", lambda p, *args: path if "://" in p else local(p, *args)
    )
    cfg = load_config(write_config(tmp_path), ["train.init_checkpoint=http://a/evil.pkl"])
    assert "http://a/evil.pkl: refused" in refusal(preflight.check_imbalance, cfg)
    assert not (tmp_path / "made").exists()


def test_proposals_that_run_code_are_refused(tmp_path):
    content = {"ids": [1], "boxes": [np.zeros((1, 4))], "objectness_logits": [Evil(tmp_path / "m")]}
    path = write(tmp_path / "proposals.pkl", content)
    cfg = zoo("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml")
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = (path,)
    line = refusal(instantiate, lazy_from_cfg_node(cfg).dataloader.train.dataset)
    assert f"DATASETS.PROPOSAL_FILES: {path}: refused" in line and "mkdir" in line
    assert not (tmp_path / "m").exists()


def test_a_name_of_an_image_leads_no_output_out_of_its_folder(tmp_path):
    folder, output = tmp_path / "set", tmp_path / "a" / "b"
    folder.mkdir()
    for name in ("x.png", "..png", "...png", "-rf.png", "b;$(touch x).png", "<b>.png", "\u202e"):
        Image.new("RGB", (64, 48), "gray").save(folder / name, format="PNG")
    names = [str(path) for path in folder.iterdir()]
    names += [f"{folder}/../set/x.png", f"{folder}/./../../{tmp_path.name}/set/x.png"]
    before = set(tmp_path.rglob("*"))
    records = [{"file_name": n, "height": 48, "width": 64, "annotations": []} for n in names]
    paths = save_prediction_pictures(
        Detector(),
        records,
        dict,
        Metadata(thing_classes=["cat", "../../dog"]),
        0.5,
        str(output),
        max_images=len(names),
    )
    made = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert {Path(path) for path in paths} == made and len(made) == len(names) + 1
    assert {path.resolve().parent for path in made} == {output.resolve()}


class Tags(HTMLParser):
    """The tags of a page and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


SCRIPT = "</title></style><script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


def poisoned(value, text):
    """Every text in a record, key or value, with markup in it."""
    if isinstance(value, dict):
        return {k: poisoned(v, text) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v, text) for v in value]
    return f"{value}{text}" if isinstance(value, str) else value


def test_the_page_of_a_comparison_shows_markup_as_text(tmp_path):
    plain = made_up_run("focal", 0, tmp_path / "run")
    curve, precision = plain["course"]["total_loss"], plain["precision_recall"]["all"]
    plain["course"] = {"iteration": plain["course"]["iteration"], "loss_cls": curve}
    plain["precision_recall"] = {"all": precision, "class": precision}
    write_report(str(tmp_path / "plain.html"), [plain])
    known = {tag for tag, _ in Tags((tmp_path / "plain.html").read_text()).found}
    assert "img" in known and "script" not in known

    bad = {**poisoned(plain, SCRIPT), "folder": plain["folder"], f"bbox/AP-{SCRIPT}": 3.0}
    bad["course"] |= {f"loss_{SCRIPT}": curve, f"monitor/ratio/{SCRIPT}": curve}
    bad["score_histograms"] = {SCRIPT: bad["score_histograms"]["loss_cls"]}
    bad["precision_recall"][SCRIPT] = precision
    runs = [bad, {**bad, "seed": 1, "failed": f"error: not finite {SCRIPT}"}]
    write_report(str(tmp_path / "page.html"), runs)
    text = (tmp_path / "page.html").read_text()
    tags = Tags(text).found
    assert {tag for tag, _ in tags} == known
    assert all(a["src"].startswith("data:image/") for tag, a in tags if tag == "img")
    assert not any(k.startswith("on") for _, a in tags for k in a)
    assert text.count("&lt;script&gt;") > 10 and "<script" not in text


def test_a_record_from_elsewhere_brings_no_other_file_onto_the_page(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "secret.png")
    run = made_up_run("focal", 0, tmp_path / "run")
    for bulk in ("course", "score_histograms", "precision_recall"):
        del run[bulk]
    pages = []
    for name in ("pictures/overview.png", "../secret.png", str(tmp_path / "secret.png")):
        write_report(str(tmp_path / "page.html"), [{**run, "pictures": name}])
        pages.append((tmp_path / "page.html").read_text())
    assert "data:image/jpeg" in pages[0] and pages[0] == pages[1] == pages[2]


SOURCES = ("projects/**/*.py", "tools/*.py", "benchmarks/*.py", "configs/**/*.py", "*.py")
EVALUATES = {"eval", "exec", "compile", "pickle.load", "pickle.loads", "yaml.load", "torch.load"}
EVALUATES |= {"yaml.unsafe_load", "np.load", "numpy.load", "joblib.load", "shelve.open"}
ADMITTED = {"checkpointer.py": {"torch.load"}}  # which says what it trusts


def test_no_source_evaluates_what_it_reads():
    files = [path for place in SOURCES for path in REPO.glob(place)]
    assert len(files) > 100
    for path in files:
        calls = [x for x in ast.walk(ast.parse(path.read_text())) if isinstance(x, ast.Call)]
        names = {ast.unparse(call.func) for call in calls}
        assert names & EVALUATES == ADMITTED.get(path.name, set()), path
        assert not any(k.arg == "shell" for call in calls for k in call.keywords), path
