import json
import math
from types import SimpleNamespace

import detectron2.data.transforms as T
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage

from helpers.tiny import batch, log_lines, mapper_of, stock_retinanet, tiny_retinanet, write_dicts
from helpers.tiny_detectors import tiny_fcos, tiny_rcnn
from sampling_free.counting.estimate import PriorEstimate, dependencies, estimate_prior
from sampling_free.engine import prior_init
from sampling_free.engine.prior_init import PriorInit
from sampling_free.utils.errors import BadInput

NAME = "test_prior_init_train"
BIAS = "head.cls_score.bias"


@pytest.fixture
def dicts(tmp_path):
    MetadataCatalog.get(NAME).set(thing_classes=["ant", "bee", "cat"])
    folder = tmp_path / "images"
    folder.mkdir()
    return write_dicts(folder, [(64, 96), (61, 47)], [4, 6])


@pytest.fixture
def hook(dicts, tmp_path):
    mapper = mapper_of(T.ResizeShortestEdge((48, 48), 128), T.RandomFlip())

    def make(**kwargs):
        return PriorInit(dicts, mapper, NAME, output_dir=str(tmp_path / "out"), **kwargs)

    return make


@pytest.fixture
def no_counting(monkeypatch):
    """Makes every measurement an error."""

    def fail(*args, **kwargs):
        raise AssertionError("the prior was measured")

    monkeypatch.setattr(prior_init, "count_anchors", fail)


def _train(model, hook, start_iter=0, max_iter=1, lr=0.0):
    """Detectron2's own loop; lr 0 keeps the parameters as the hook leaves them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    trainer = SimpleTrainer(model, [batch(3, 2, seed=i) for i in range(4)], optimizer)
    trainer.register_hooks([hook])
    trainer.train(start_iter, max_iter)
    return trainer


def _bias(model):
    return model.state_dict()[BIAS].clone()


def _expected(dicts, hook):
    """(prior, bias) from an estimate made apart from the hook."""
    estimate = estimate_prior(tiny_retinanet(), dicts, hook.mapper, NAME, progress=False)
    prior = estimate.num_foreground / (estimate.num_valid * 3)
    return prior, math.log(prior / (1 - prior))


def test_the_measured_prior_sets_the_bias_before_the_first_iteration(dicts, hook, tmp_path):
    model, hook = tiny_retinanet(), hook()
    prior, bias = _expected(dicts, hook)
    other = {k: v.clone() for k, v in model.state_dict().items() if k != BIAS}
    with log_lines() as lines:
        _train(model, hook)
    assert _bias(model).tolist() == pytest.approx([bias] * (6 * 3), rel=1e-6)
    assert model.prior == pytest.approx(prior)
    for key, value in other.items():
        assert torch.equal(model.state_dict()[key], value), key
    assert hook.state_dict()["prior"] == pytest.approx(prior)
    assert json.loads((tmp_path / "out" / "prior.json").read_text())["prior"] == model.prior
    assert sum("N_f" in line and "stride 8" in line for line in lines) == 1


def test_start_scores_are_the_prior_everywhere(dicts, hook):
    model = tiny_retinanet()
    _train(model, hook(), max_iter=0)
    images = model.preprocess_image(batch(1))
    features = model.backbone(images.tensor)
    logits, _ = model.head([features[f] * 0 for f in model.head_in_features])
    scores = torch.cat([x.flatten() for x in logits]).sigmoid()
    assert scores.tolist() == pytest.approx([model.prior] * len(scores), rel=1e-5)


def test_training_starts_from_the_bias_and_then_moves_it(hook):
    model = tiny_retinanet()
    _train(model, hook(), max_iter=3, lr=0.05)
    start = math.log(model.prior / (1 - model.prior))
    assert (_bias(model) - start).abs().max() > 1e-3
    assert _bias(model).mean().item() == pytest.approx(start, abs=1)


def test_a_prior_in_the_config_wins(hook, no_counting, tmp_path):
    model, hook = tiny_retinanet(prior=0.02), hook()
    with log_lines() as lines:
        _train(model, hook)
    assert _bias(model).tolist() == pytest.approx([math.log(0.02 / 0.98)] * 18)
    assert hook.state_dict() == {"prior": 0.02, "estimate": None}
    assert not (tmp_path / "out").exists()
    assert any("2.0000e-02" in line and "nothing measured" in line for line in lines)


def _labels(dicts, mapper):
    """Labels of all anchors of each image under a mapper without augmentations."""
    model = tiny_retinanet()
    for record in dicts:
        mapped = mapper(record)
        features = model.backbone(model.preprocess_image([mapped]).tensor)
        anchors = model.anchor_generator([features[f] for f in model.head_in_features])
        yield model.label_anchors(anchors, [mapped["instances"]])[0][0]


class TestPerClass:
    @pytest.fixture
    def plain(self, dicts, tmp_path):
        return PriorInit(dicts, mapper_of(), NAME, output_dir=str(tmp_path / "out"))

    def test_no_class_would_move_its_bias_at_the_start(self, dicts, plain):
        model = tiny_retinanet(prior="per_class")
        _train(model, plain)
        biases = _bias(model).view(6, 3)
        assert torch.equal(biases, biases[:1].expand(6, 3))
        shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        for labels in _labels(dicts, mapper_of()):
            labels = labels[labels >= 0]
            target = torch.nn.functional.one_hot(labels, 4)[:, :3].double()
            logits = (biases[0].double() + shift).expand(len(labels), 3)
            torch.nn.functional.binary_cross_entropy_with_logits(
                logits, target, reduction="sum"
            ).backward()
        num = sum((x < 3).sum().item() for x in _labels(dicts, mapper_of()))
        assert shift.grad.abs().max() < 1e-4 * num

    def test_the_mean_of_the_classes_is_the_prior_of_all(self, plain, dicts):
        model, one = tiny_retinanet(prior="per_class"), tiny_retinanet()
        _train(model, plain)
        estimate = PriorEstimate(**plain.state_dict()["estimate"])
        assert len(set(model.prior)) > 1
        assert sum(model.prior) / 3 == pytest.approx(estimate.prior)
        assert plain.state_dict()["prior"] == model.prior
        _train(one, PriorInit(dicts, mapper_of(), NAME))
        assert one.prior == estimate.prior

    def test_a_class_without_a_sample_counts_as_one_and_is_named(self, plain, dicts):
        for record in dicts:
            for annotation in record["annotations"]:
                annotation["category_id"] = min(annotation["category_id"], 1)
        model = tiny_retinanet(prior="per_class")
        with log_lines() as lines:
            _train(model, plain)
        estimate = PriorEstimate(**plain.state_dict()["estimate"])
        assert model.prior[2] == 1 / estimate.num_valid
        assert [x for x in lines if "cat: no foreground sample" in x]
        assert [x for x in lines if x.startswith(f"{BIAS} is set to")]

    def test_it_comes_back_with_a_resumed_run(self, plain, dicts, no_counting):
        hook = PriorInit(dicts, mapper_of(), NAME)
        hook.load_state_dict({"prior": [0.1, 0.2, 0.3], "estimate": None})
        model = tiny_retinanet(prior="per_class")
        _train(model, hook, start_iter=2, max_iter=2)
        assert model.prior == [0.1, 0.2, 0.3]

    def test_a_prior_for_each_class_in_the_config_wins(self, plain, no_counting):
        model = tiny_retinanet(prior=[0.1, 0.2, 0.3])
        _train(model, plain)
        scores = _bias(model).sigmoid().view(6, 3)[4]
        assert scores.tolist() == pytest.approx([0.1, 0.2, 0.3])

    @pytest.mark.parametrize("prior", [[0.1, 0.2], [0.1, 0.2, 1.0], ["a", "b", "c"], []])
    def test_what_is_no_prior_for_each_class_is_refused(self, prior):
        with pytest.raises(BadInput, match="one for each class"):
            tiny_retinanet(prior=prior)

    @pytest.mark.parametrize("kind", ["fcos", "rpn"])
    def test_other_heads_have_it_too(self, plain, kind):
        model = (
            tiny_fcos(prior="per_class")
            if kind == "fcos"
            else tiny_rcnn(rpn={"prior": "per_class"})
        )
        _train(model, plain)
        head = model if kind == "fcos" else model.proposal_generator
        assert len(head.prior) == (3 if kind == "fcos" else 1)
        scores = head.classifier_bias.detach().sigmoid().view(-1, len(head.prior))[0]
        assert scores.tolist() == pytest.approx(head.prior, rel=1e-4)


def test_a_stock_retinanet_is_left_alone(hook, no_counting, tmp_path):
    model, hook = stock_retinanet(), hook()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    _train(model, hook)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert hook.state_dict() == {} and not (tmp_path / "out").exists()


def test_a_trainer_without_the_hook_refuses_a_prior_still_to_be_measured():
    model = tiny_retinanet()
    trainer = SimpleTrainer(model, [batch(1)], torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(BadInput, match="'auto'.*PriorInit"):
        trainer.train(0, 1)


class TestResume:
    def _stopped_run(self, hook, tmp_path):
        """A checkpoint by Detectron2's checkpointer after one iteration; returns its model."""
        model, hook = tiny_retinanet(), hook()
        trainer = _train(model, hook, lr=0.05)
        checkpointer = DetectionCheckpointer(model, str(tmp_path), trainer=trainer, prior=hook)
        checkpointer.save("model_0000000", iteration=0)
        return model

    def test_a_resumed_run_measures_nothing_and_keeps_bias_and_prior(
        self, hook, tmp_path, monkeypatch
    ):
        old = self._stopped_run(hook, tmp_path)
        monkeypatch.setattr(prior_init, "count_anchors", None)  # a call would fail
        (tmp_path / "out" / "prior.json").unlink()
        model, hook = tiny_retinanet(seed=9), hook()
        DetectionCheckpointer(model, str(tmp_path), prior=hook).resume_or_load("", resume=True)
        assert model.prior == "auto"
        _train(model, hook, start_iter=1, max_iter=2)
        assert model.prior == old.prior == hook.state_dict()["prior"]
        assert torch.equal(_bias(model), _bias(old))
        assert not (tmp_path / "out" / "prior.json").exists()
        assert PriorEstimate(**hook.state_dict()["estimate"]).prior == old.prior

    def test_the_trainers_own_state_carries_the_prior_too(self, hook, tmp_path):
        old = self._stopped_run(hook, tmp_path)
        saved = torch.load(tmp_path / "model_0000000.pth", weights_only=False)
        assert saved["trainer"]["hooks"]["PriorInit"]["prior"] == old.prior

    def test_without_a_prior_in_the_checkpoint_it_is_refused(self, hook, no_counting):
        with pytest.raises(
            BadInput, match="no prior came with the checkpoint.*train.init_checkpoint"
        ):
            _train(tiny_retinanet(), hook(), start_iter=5, max_iter=6)

    def test_a_prior_in_the_config_needs_none_in_the_checkpoint(self, hook, no_counting):
        model = tiny_retinanet(prior=0.02)
        _train(model, hook(), start_iter=5, max_iter=6)
        assert model.prior == 0.02


class TestLoadedHead:
    def _load(self, tmp_path, source, **kwargs):
        """A new model with the weights of ``source``, through a checkpoint file."""
        DetectionCheckpointer(source, str(tmp_path)).save("source")
        model = tiny_retinanet(seed=5, **kwargs)
        DetectionCheckpointer(model).load(str(tmp_path / "source.pth"))
        return model

    def _source(self, **kwargs):
        source = stock_retinanet(**kwargs)
        with torch.no_grad():
            source.head.cls_score.bias.copy_(torch.linspace(-9, 1, len(_bias(source))))
        return source

    def test_it_keeps_its_bias_and_the_log_compares_it_with_the_prior(self, dicts, hook, tmp_path):
        source, hook = self._source(), hook()
        model = self._load(tmp_path, source)
        with log_lines() as lines:
            _train(model, hook)
        assert torch.equal(_bias(model), _bias(source))
        prior, _ = _expected(dicts, hook)
        assert model.prior == hook.state_dict()["prior"] == pytest.approx(prior)
        images = [hook.mapper(record) for record in dicts]
        with EventStorage(), torch.no_grad():
            source.eval()
            features = source.backbone(source.preprocess_image(images).tensor)
            logits, _ = source.head([features[f] for f in source.head_in_features])
        scores = torch.cat([x.double().sigmoid().flatten() for x in logits])
        mean = scores.mean().item()
        said = [line for line in lines if f"{mean:.3e}" in line and f"{prior:.3e}" in line]
        assert len(said) == 1 and "train.reset_prior=True" in said[0]

    @pytest.mark.parametrize("prior", ["auto", 0.02])
    def test_reset_prior_resets_it(self, dicts, hook, tmp_path, prior):
        hook = hook(reset_prior=True)
        model = self._load(tmp_path, self._source(), prior=prior)
        _train(model, hook)
        bias = _expected(dicts, hook)[1] if prior == "auto" else math.log(0.02 / 0.98)
        assert _bias(model).tolist() == pytest.approx([bias] * 18, rel=1e-6)

    @pytest.mark.parametrize("num_classes", [1, 80])
    def test_a_checkpoint_of_another_class_count_gets_the_prior(
        self, dicts, hook, tmp_path, num_classes
    ):
        source, hook = self._source(num_classes=num_classes), hook()
        model = self._load(tmp_path, source)
        key = "backbone.bottom_up.stem.weight"
        assert torch.equal(model.state_dict()[key], source.state_dict()[key])
        _train(model, hook)
        assert _bias(model).tolist() == pytest.approx([_expected(dicts, hook)[1]] * 18, rel=1e-6)

    def test_a_backbone_alone_is_no_head(self, dicts, hook):
        model, hook = tiny_retinanet(), hook()
        weights = {k: v for k, v in model.state_dict().items() if k.startswith("backbone")}
        model.load_state_dict(weights, strict=False)
        _train(model, hook)
        assert _bias(model).tolist() == pytest.approx([_expected(dicts, hook)[1]] * 18, rel=1e-6)


class TestPriorFile:
    def test_it_is_read_instead_of_measuring(self, dicts, hook, tmp_path, no_counting):
        path = tmp_path / "given.json"
        estimate = estimate_prior(tiny_retinanet(), dicts, hook().mapper, NAME, progress=False)
        estimate.num_foreground *= 2  # so that it differs from what would be measured
        estimate.save(path)
        model = tiny_retinanet()
        _train(model, hook(prior_file=str(path)))
        assert model.prior == estimate.prior
        assert _bias(model).tolist() == pytest.approx([estimate.bias] * 18)

    def test_a_stale_one_is_refused_and_nothing_is_set(self, dicts, hook, tmp_path, no_counting):
        path = tmp_path / "given.json"
        mapper = hook().mapper
        estimate = PriorEstimate(100.0, 1.0, 3)
        estimate.depends_on = dependencies(tiny_retinanet(), dicts[:1], mapper, NAME)
        estimate.save(path)
        model = tiny_retinanet()
        before = _bias(model)
        with pytest.raises(BadInput, match="given.json: stale: made with number of images = 1"):
            _train(model, hook(prior_file=str(path)))
        assert torch.equal(_bias(model), before) and model.prior == "auto"


def _one_of_two(rank, dicts, folder):
    """A process of two: what the hook leaves, or the line that it stops with."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mapper = mapper_of(T.ResizeShortestEdge((48, 48), 128), T.RandomFlip())
    answers = []
    broken = [dicts[0], {k: v for k, v in dicts[1].items() if k != "height"}]
    for records in (dicts, broken):
        model = tiny_retinanet()
        hook = PriorInit(records, mapper, NAME, output_dir=f"{folder}/out{rank}")
        hook.trainer = SimpleNamespace(model=model, start_iter=0)
        try:
            hook.before_train()
            answers.append((model.prior, _bias(model).tolist()))
        except BadInput as e:
            answers.append(str(e))
    torch.save(answers, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


class TestTwoProcesses:
    @pytest.fixture(scope="class")
    def answers(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("two")
        dicts = write_dicts(folder, [(64, 96), (61, 47), (64, 64)], [4, 6, 2])
        torch.multiprocessing.spawn(_one_of_two, (dicts, str(folder)), nprocs=2)
        mapper = mapper_of(T.ResizeShortestEdge((48, 48), 128), T.RandomFlip())
        alone = estimate_prior(tiny_retinanet(), dicts, mapper, NAME, progress=False)
        return [torch.load(folder / f"{rank}.pt") for rank in range(2)], alone, folder

    def test_they_set_the_same_bits_which_are_those_of_one_process(self, answers):
        (first, second), alone, _ = answers
        assert first[0] == second[0]
        assert first[0][0] == pytest.approx(alone.prior, rel=1e-12)

    def test_the_main_one_alone_writes_the_file(self, answers):
        _, alone, folder = answers
        saved = PriorEstimate.load(folder / "out0" / "prior.json")
        assert (saved.num_images, saved.num_foreground) == (3, alone.num_foreground)
        assert not (folder / "out1").exists()

    def test_an_error_of_one_stops_both_with_its_line(self, answers):
        (first, second), _, _ = answers
        assert first[1] == second[1] and "no height and width" in first[1]


def test_a_set_without_objects_stops_before_training(dicts, hook):
    for record in dicts:
        record["annotations"] = []
    with pytest.raises(BadInput, match="no anchor is foreground"):
        _train(tiny_retinanet(), hook())
