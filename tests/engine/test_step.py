"""One training step in full and in mixed precision, against steps done by hand."""

import copy
import math

import pytest
import torch
from detectron2.utils.events import EventStorage

from helpers.line_model import Line, record
from helpers.tiny import batch, stock_retinanet
from helpers.tiny_detectors import stock_fcos, tiny_rcnn
from sampling_free.config.load import DTYPES
from sampling_free.engine.step import PrecisionTrainer
from sampling_free.utils.errors import NonFiniteLoss

LR = 0.5
# float16 goes up to 65504 and the scaler starts at 65536: a gradient of 1 would overflow.
SCALE = 1 / 64


BATCH = [record(1.0, 2.0, 3.0, 4.0), record(0.0, 1.0, 0.0, -1.0, name="b.png")]


def make(dtype=None, scale=SCALE, batch=BATCH):
    model = Line(scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    trainer = PrecisionTrainer(model, [batch] * 9, optimizer, "cpu", dtype)
    trainer.iter = 0
    return trainer


def step(trainer, times=1):
    with EventStorage() as storage:
        for _ in range(times):
            trainer.run_step()
    return storage


def weights(trainer):
    return trainer.model.linear.weight.detach().clone()


def moved(gradient):
    """The weights after one step of SGD from 0.25."""
    return (0.25 - LR * torch.as_tensor(gradient)).expand(3, 4)


SUM_OF_X = torch.tensor([1.0, 3.0, 3.0, 3.0])
GRADIENT = SCALE * SUM_OF_X + 1


@pytest.mark.parametrize("dtype", [None, *DTYPES])
def test_a_step_is_that_of_sgd_in_every_precision(dtype):
    trainer = make(dtype)
    storage = step(trainer)
    assert torch.equal(weights(trainer), moved(GRADIENT))
    assert trainer.model.seen is DTYPES.get(dtype, torch.float32)
    assert trainer.model.linear.weight.dtype is torch.float32
    latest = {k: v for k, (v, _) in storage.latest().items()}
    assert latest["loss_a"] == 7.5 * SCALE and latest["loss_b"] == 3.0
    assert latest["total_loss"] == 7.5 * SCALE + 3.0
    assert latest["data_time"] >= 0


def test_the_gradient_of_the_step_before_is_dropped():
    trainer = make()
    step(trainer)
    step(trainer)
    # Momentum: v1 = g, v2 = 0.9 g + g.
    assert torch.allclose(weights(trainer), moved(2.9 * GRADIENT))


def test_float16_scales_what_would_underflow():
    # 1e-9 is zero in float16; without loss_b nothing else is left.
    trainer = make("float16", scale=1e-9)
    trainer.model.forward = lambda records: {"loss": Line.forward(trainer.model, records)["loss_a"]}
    step(trainer)
    momentum = trainer.optimizer.state[trainer.model.linear.weight]["momentum_buffer"]
    assert torch.allclose(momentum, 1e-9 * SUM_OF_X.expand(3, 4), rtol=2e-3, atol=0)


def test_float16_leaves_out_a_step_whose_gradient_overflows_and_scales_less():
    trainer = make("float16", scale=10.0)
    before, scale = weights(trainer), trainer.grad_scaler.get_scale()
    step(trainer)
    assert torch.equal(weights(trainer), before)
    assert trainer.grad_scaler.get_scale() == scale / 2
    step(trainer, times=5)  # 30 * 65536 / 2**5 fits
    assert not torch.equal(weights(trainer), before)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_only_float16_has_a_scaler(dtype):
    assert not make(dtype).grad_scaler.is_enabled()
    assert make("float16").grad_scaler.is_enabled()


@pytest.mark.parametrize("dtype", [None, *DTYPES])
def test_a_restored_trainer_continues_as_the_other_would(dtype):
    one, two = make(dtype, scale=10.0), make(dtype, scale=10.0)
    step(one, times=4)
    state = copy.deepcopy(one.state_dict())
    two.model.load_state_dict(one.model.state_dict())
    two.load_state_dict(state)
    step(one, times=2)
    step(two, times=2)
    assert torch.equal(weights(one), weights(two))
    assert one.grad_scaler.state_dict() == two.grad_scaler.state_dict()


def test_a_state_of_a_run_in_full_precision_can_be_loaded():
    plain, scaled = make(), make("float16")
    step(plain)
    scaled.load_state_dict(plain.state_dict())
    assert scaled.grad_scaler.get_scale() == make("float16").grad_scaler.get_scale()
    step(scaled)


@pytest.mark.parametrize("dtype", [None, *DTYPES])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_described_and_nothing_is_changed(dtype, value):
    trainer = make(dtype, batch=[*BATCH, record(value, 0.0, 0.0, 0.0, name="bad.png")])
    trainer.iter = 17
    before = weights(trainer)
    with EventStorage(17) as storage, pytest.raises(NonFiniteLoss) as e:
        storage.put_scalar("guide/r", 0.125)
        storage.put_scalar("time", 3.0)
        trainer.run_step()
    text = str(e.value)
    assert len(text.splitlines()) == 1
    for part in (
        "iteration 17",
        f"'loss_a': {value}",
        "'loss_b': 3.0",
        "'guide/r': 0.125",
        "learning rate 0.5",
        "['a.png', 'b.png', 'bad.png']",
    ):
        assert part in text
    assert "time" not in text.replace("at iteration", "")
    assert torch.equal(weights(trainer), before)


def test_a_model_in_eval_mode_is_refused():
    trainer = make()
    trainer.model.eval()
    with pytest.raises(AssertionError, match="eval mode"):
        step(trainer)


def test_proposals_that_are_not_finite_are_one_line_too():
    trainer = make(None)
    trainer.iter = 17

    def forward(data):  # as Detectron2's RPN does it
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")

    trainer.model.forward = forward
    with EventStorage(17), pytest.raises(NonFiniteLoss) as e:
        trainer.run_step()
    text = str(e.value)
    assert len(text.splitlines()) == 1
    assert "proposals are not finite at iteration 17" in text and "learning rate 0.5" in text


def diverged_step(model):
    """The error of a step after which the weights are not numbers."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    trainer = PrecisionTrainer(model.train(), [batch(3, 2)] * 2, optimizer, "cpu")
    trainer.iter = 0
    with EventStorage(), pytest.raises(NonFiniteLoss) as e:
        trainer.run_step()
    return str(e.value)


@pytest.mark.parametrize(
    "make",
    [
        stock_fcos,
        lambda: stock_retinanet(box_reg_loss_type="giou"),
        lambda: tiny_rcnn("cascade", stock=True),
    ],
)
def test_assertions_of_libraries_on_boxes_that_are_no_numbers_are_one_line_too(make):
    assert "not finite" in diverged_step(make())


def test_another_assertion_stays_what_it_is():
    trainer = make()
    trainer.model.forward = lambda data: (_ for _ in ()).throw(AssertionError("something else"))
    with pytest.raises(AssertionError, match="something else"):
        step(trainer)
