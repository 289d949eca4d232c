"""Checkpoints: stock keys and a prior beside them; what is missing, torn or foreign is named."""

import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
from detectron2.modeling.meta_arch import RetinaNet

from helpers.tiny_run import (
    FOCAL,
    NUM_CLASSES,
    load,
    log_lines,
    run,
    run_until,
    trainer,
    write_config,
)
from sampling_free.checkpoint.checkpointer import NamingCheckpointer
from sampling_free.engine.trainer import evaluate_only
from sampling_free.utils.errors import BadInput

BIAS = "head.cls_score.bias"
SHORT = "train.max_iter=2"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The last checkpoint of a sampling-free run."""
    folder = tmp_path_factory.mktemp("saved")
    run(write_config(folder), SHORT)
    return folder / "out" / "model_final.pth"


@pytest.fixture(scope="module")
def focal(tmp_path_factory):
    """The last checkpoint of a run of Detectron2's own RetinaNet."""
    folder = tmp_path_factory.mktemp("focal")
    made = run(write_config(folder, FOCAL), SHORT)
    assert type(made.model) is RetinaNet
    return folder / "out" / "model_final.pth"


def started(config, weights, *overrides):
    """A trainer whose prior has been set as before the first iteration, and what was logged."""
    made = trainer(config, f"train.init_checkpoint={weights}", *overrides)
    made.logits = []
    hook = made.model.head.register_forward_hook(
        lambda module, inputs, outputs: made.logits.extend(x.double().flatten() for x in outputs[0])
    )
    with log_lines() as lines, torch.no_grad():
        made.prior_init.before_train()
    hook.remove()
    return made, lines


def logit(p):
    return float(np.log(p) - np.log1p(-p))


def test_it_has_stock_keys_and_beside_them_the_prior(saved, focal):
    ours, stock = load(saved), load(focal)
    assert {k: v.shape for k, v in ours["model"].items()} == {
        k: v.shape for k, v in stock["model"].items()
    }
    assert ours.keys() - stock.keys() <= {"prior"}
    prior, estimate = ours["prior"]["prior"], ours["prior"]["estimate"]
    counted = estimate["num_foreground"] / (estimate["num_valid"] * NUM_CLASSES)
    assert prior == pytest.approx(counted) and 0 < prior < 0.5
    assert not stock.get("prior")


def test_it_holds_the_state_of_the_optimizer_and_the_iteration(saved):
    state = load(saved)["trainer"]
    momenta = state["_trainer"]["optimizer"]["state"]
    assert state["iteration"] == 1 and len(momenta) > 20
    assert any(m["momentum_buffer"].abs().max() > 0 for m in momenta.values())


def test_torch_can_read_it_without_trusting_it(saved):
    assert torch.load(saved, weights_only=True)["prior"]["prior"] > 0


def test_a_head_without_weights_gets_the_bias_of_the_prior(tmp_path):
    made, lines = started(write_config(tmp_path), "")
    bias = made.model.classifier_bias.detach()
    assert torch.allclose(bias, torch.tensor(logit(made.model.prior)))
    assert not [x for x in lines if "came with the checkpoint" in x]


@pytest.mark.parametrize("source", ["saved", "focal"])
def test_fine_tuning_with_the_same_classes_keeps_the_head_and_says_so(tmp_path, source, request):
    path = request.getfixturevalue(source)
    made, lines = started(write_config(tmp_path), path)
    loaded = load(path)["model"][BIAS]
    assert torch.equal(made.model.classifier_bias.detach(), loaded)
    (line,) = (x for x in lines if "came with the checkpoint" in x)
    mean = (1 / (1 + np.exp(-torch.cat(made.logits).numpy()))).mean()
    assert f"is {mean:.3e}, the prior is {made.model.prior:.3e}" in line
    assert "train.reset_prior=True" in line


def test_reset_prior_gives_a_loaded_head_the_bias(tmp_path, saved):
    made, lines = started(write_config(tmp_path), saved, "train.reset_prior=True")
    bias = made.model.classifier_bias.detach()
    assert torch.allclose(bias, torch.tensor(logit(made.model.prior)))
    assert torch.equal(
        made.model.head.cls_score.weight, load(saved)["model"]["head.cls_score.weight"]
    )


def test_fine_tuning_with_other_classes_sets_the_new_head_and_keeps_the_rest(tmp_path, saved):
    config = write_config(
        tmp_path,
        "\n_set.update(num_classes=3)\n"
        "for _split in (dataloader.train, dataloader.test):\n"
        "    _split.dataset.names.update(num_classes=3)\n"
        "    _split.dataset.names.name += '_3'\n"
        "model.num_classes = 3\n",
    )
    with log_lines("fvcore") as warnings:
        made, lines = started(config, saved)
    bias = made.model.classifier_bias.detach()
    assert len(bias) == 9 * 3
    assert torch.allclose(bias, torch.tensor(logit(made.model.prior)))
    old = load(saved)["model"]
    kept = {k for k, v in made.model.state_dict().items() if torch.equal(v, old[k])}
    assert old.keys() - kept == {"head.cls_score.weight", BIAS}
    assert [x for x in warnings if "head.cls_score" in x]
    assert not [x for x in lines if "keeps its bias" in x]


def test_fine_tuning_starts_at_iteration_0_with_a_new_optimizer(tmp_path, saved):
    made = trainer(write_config(tmp_path), f"train.init_checkpoint={saved}")
    assert made.start_iter == 0 and made.optimizer.state_dict()["state"] == {}


def test_a_prior_in_the_config_wins(tmp_path, monkeypatch):
    monkeypatch.setattr("sampling_free.engine.prior_init.count_anchors", None)
    made, lines = started(write_config(tmp_path), "", "model.prior=0.25", "train.prior_file=none")
    assert torch.allclose(made.model.classifier_bias.detach(), torch.tensor(logit(0.25)))
    assert made.checkpointer.checkpointables["prior"].state_dict()["prior"] == 0.25
    assert [x for x in lines if "2.5000e-01 from the config" in x]


def test_a_prior_file_is_read_and_a_stale_one_refused(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, _ = started(write_config(tmp_path / "a"), "")
    monkeypatch.setattr("sampling_free.engine.prior_init.count_anchors", None)
    option = f"train.prior_file={tmp_path}/a/out/prior.json"
    config = write_config(tmp_path / "b")
    again, lines = started(config, "", option)
    assert again.model.prior == first.model.prior
    assert [x for x in lines if x.startswith(f"Prior read from {tmp_path}/a/out/prior.json")]
    with pytest.raises(BadInput, match="prior.json: stale.*anchors.*estimate_prior"):
        started(config, "", option, "model.anchor_generator.aspect_ratios=[1.0,2.0,3.0]")


def broken(tmp_path, saved, kind):
    path = tmp_path / "weights.pth"
    if kind == "torn":
        path.write_bytes(saved.read_bytes()[:-1000])
    elif kind == "text":
        path.write_text("no checkpoint at all")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pickle":
        path = tmp_path / "weights.pkl"
        path.write_bytes(pickle.dumps({"model": {"a": np.zeros(3)}})[:-9])
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "number":
        torch.save({"model": 3}, path)
    return path


KINDS = ["torn", "text", "folder", "pickle", "list", "number", "missing"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_checkpoint_is_named_in_one_line(tmp_path, saved, kind):
    path = broken(tmp_path, saved, kind)
    made = trainer(write_config(tmp_path))
    with pytest.raises(BadInput) as e:
        made.checkpointer.load(str(path))
    text = str(e.value)
    assert text.startswith(f"{path}: ") and len(text.splitlines()) == 1
    assert ("no such checkpoint" in text) == (kind in ("folder", "missing"))


def test_weights_that_cannot_be_downloaded_are_named(tmp_path, monkeypatch):
    made = trainer(write_config(tmp_path))

    def offline(path):
        raise URLError("no network")

    monkeypatch.setattr(made.checkpointer.path_manager, "get_local_path", offline)
    with pytest.raises(BadInput, match="detectron2://ImageNet.*no network"):
        made.checkpointer.load("detectron2://ImageNetPretrained/MSRA/R-50.pkl")


def test_weights_in_the_form_of_detectrons_zoo_are_read(tmp_path, saved):
    arrays = {k: v.numpy() for k, v in load(saved)["model"].items() if "num_batches" not in k}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "the zoo"}))
    made, _ = started(write_config(tmp_path), path)
    assert torch.equal(
        made.model.head.bbox_pred.weight.detach(), load(saved)["model"]["head.bbox_pred.weight"]
    )


def test_weights_of_which_nothing_fits_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"model": {"conv.weight": torch.zeros(3)}}, path)
    with pytest.raises(BadInput, match="other.pth: of another architecture: 0 of its 1 entries"):
        trainer(write_config(tmp_path), f"train.init_checkpoint={path}")


WIDER = ["model.head.conv_dims=[16]"]


def test_resuming_and_evaluating_with_another_architecture_are_refused(tmp_path):
    config = write_config(tmp_path)
    run(config, SHORT)
    pattern = "model_final.pth: of another architecture: .*head.cls_subnet.0.weight.*config"
    with pytest.raises(BadInput, match=pattern):
        trainer(config, *WIDER, resume=True)
    with pytest.raises(BadInput, match=pattern):
        evaluate_only(trainer(config, *WIDER).cfg, resume=True)


def test_fine_tuning_takes_what_fits(tmp_path, saved):
    made = trainer(write_config(tmp_path), f"train.init_checkpoint={saved}", *WIDER)
    old = load(saved)["model"]
    new = made.model.state_dict()
    name = "backbone.fpn_lateral3.weight"
    assert torch.equal(new[name], old[name]) and new["head.cls_subnet.0.weight"].shape[0] == 16


def test_the_last_checkpoint_may_have_been_deleted(tmp_path):
    config = write_config(tmp_path)
    run(config, SHORT)
    (tmp_path / "out" / "model_final.pth").unlink()
    with pytest.raises(BadInput, match="out/model_final.pth: no such checkpoint"):
        trainer(config, resume=True)


def test_a_sampling_free_run_cannot_resume_a_focal_one(tmp_path):
    config = write_config(tmp_path, FOCAL)
    run_until(4, config)
    made = trainer(write_config(tmp_path, name="ours.py"), resume=True)
    with pytest.raises(BadInput, match="no prior came with the checkpoint.*train.init_checkpoint"):
        made.train()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_save_that_breaks_off_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, error):
    model = torch.nn.Linear(2, 2)
    checkpointer = NamingCheckpointer(model, str(tmp_path))
    checkpointer.save("model_best", mark=1)

    def half(data, f, *args, **kwargs):
        f.write(b"PK half a file")
        raise error("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    for name in ("model_best", "model_0000001"):
        with pytest.raises(error):
            checkpointer.save(name, mark=2)
    assert load(checkpointer.get_checkpoint_file())["mark"] == 1
    assert [p.name for p in tmp_path.glob("*.pth")] == ["model_best.pth"]


def test_a_process_that_writes_nothing_leaves_what_another_writes(tmp_path, monkeypatch):
    first, second = (
        NamingCheckpointer(torch.nn.Linear(2, 2), str(tmp_path), save_to_disk=writes)
        for writes in (True, False)
    )
    write = torch.save

    def slow(data, f):
        write(data, f)
        second.save("model_0000005")  # the other process gets there meanwhile

    monkeypatch.setattr(torch, "save", slow)
    first.save("model_0000005", mark=1)
    assert load(tmp_path / "model_0000005.pth")["mark"] == 1
    assert {p.name for p in tmp_path.iterdir()} == {"last_checkpoint", "model_0000005.pth"}


def test_a_folder_may_be_named_like_an_unfinished_file(tmp_path):
    folder = tmp_path / "run.unfinished"
    folder.mkdir()
    checkpointer = NamingCheckpointer(torch.nn.Linear(2, 2), str(folder))
    checkpointer.save("model_final")
    assert [p.name for p in folder.glob("*.pth")] == ["model_final.pth"]
    assert checkpointer.get_checkpoint_file() == str(folder / "model_final.pth")


def test_an_interrupt_while_saving_is_an_interrupt(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        # What torch's writer makes of it when it closes its file.
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 60800 vs 60696")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        NamingCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).save("a")
