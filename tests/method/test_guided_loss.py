import pytest
import torch
from torch import nn

from sampling_free.method import guided_loss
from sampling_free.method.guided_loss import guide_ratio
from sampling_free.method.guides import make_guide

# Rows of a made-up batch, one per image and so many foreground samples in each.
INPUTS = torch.randn(8, 5, generator=torch.Generator().manual_seed(7))


def guided_losses(sum_cls, sum_loc, num, guide="iteration", weight=1.0, loc_normalizers=None):
    guide = make_guide(guide, weight=weight)
    return guided_loss.guided_losses(sum_cls, sum_loc, num, guide, loc_normalizers=loc_normalizers)


class TwoLosses(nn.Module):
    """A shared layer with a classification sum over all rows and a box sum over foreground."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.trunk = nn.Linear(5, 4)
        self.cls = nn.Linear(4, 3)
        self.loc = nn.Linear(4, 1)

    def forward(self, x, num_foreground):
        h = self.trunk(x).relu()
        sum_cls = torch.nn.functional.softplus(self.cls(h)).sum() * 3
        sum_loc = (self.loc(h).abs() * num_foreground[:, None]).sum()
        return sum_cls, sum_loc


def _sums(num_foreground=9):
    model = TwoLosses()
    counts = torch.zeros(8)
    counts[:3] = num_foreground / 3
    return model, *model(INPUTS, counts), torch.tensor(num_foreground)


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_the_scaled_classification_loss_has_the_value_of_the_localization_loss(weight):
    _, sum_cls, sum_loc, num_foreground = _sums()
    losses = guided_losses(sum_cls, sum_loc, num_foreground, weight=weight)
    assert losses.loss_loc.item() == pytest.approx(sum_loc.item() / 9)
    assert losses.loss_cls.item() == pytest.approx(weight * sum_loc.item() / 9)
    assert losses.loss_cls_raw.item() == pytest.approx(sum_cls.item() / 9)
    assert losses.num_foreground.item() == 9


def test_the_gradient_keeps_its_direction_and_r_has_none():
    model, sum_cls, sum_loc, num_foreground = _sums()
    parameters = list(model.trunk.parameters())
    raw_cls = torch.autograd.grad(sum_cls, parameters, retain_graph=True)
    raw_loc = torch.autograd.grad(sum_loc, parameters, retain_graph=True)
    losses = guided_losses(sum_cls, sum_loc, num_foreground)
    assert not losses.ratio.requires_grad and not losses.loss_cls_raw.requires_grad
    scaled = torch.autograd.grad(losses.loss_cls, parameters, retain_graph=True)
    for raw, got in zip(raw_cls, scaled):
        # A gradient through r would add a part along that of the localization loss.
        torch.testing.assert_close(got, raw * (sum_loc / sum_cls / 9).detach())
    unscaled = torch.autograd.grad(losses.loss_loc, parameters, retain_graph=True)
    for raw, got in zip(raw_loc, unscaled):
        torch.testing.assert_close(got, raw / 9)
    # ... and the localization layer learns from its own loss alone.
    own = torch.autograd.grad(losses.loss_cls, model.loc.parameters(), allow_unused=True)
    assert own == (None, None)


def test_the_classification_losss_own_scale_cancels():
    _, sum_cls, sum_loc, num_foreground = _sums()
    one = guided_losses(sum_cls, sum_loc, num_foreground)
    other = guided_losses(1000 * sum_cls, sum_loc, num_foreground)
    assert other.loss_cls.item() == pytest.approx(one.loss_cls.item())
    assert other.ratio.item() == pytest.approx(one.ratio.item() / 1000)


@pytest.mark.parametrize("constant", [0.0, 0.25, 1.0])
def test_a_constant_guide_scales_whatever_the_localization_loss_is(constant):
    _, sum_cls, sum_loc, num_foreground = _sums()
    for factor in (1, 50):
        losses = guided_losses(sum_cls, factor * sum_loc, num_foreground, guide=constant)
        assert losses.loss_cls.item() == pytest.approx(constant * sum_cls.item() / 9)
        assert losses.ratio.item() == constant


@pytest.mark.parametrize("guide", ["iteration", 1.0])
def test_a_batch_without_foreground_gives_every_parameter_a_zero_gradient(guide):
    model, sum_cls, sum_loc, num_foreground = _sums(0)
    losses = guided_losses(sum_cls, sum_loc, num_foreground, guide)
    assert sum_cls.item() > 0
    assert losses.loss_cls.item() == losses.loss_loc.item() == losses.ratio.item() == 0
    (losses.loss_cls + losses.loss_loc).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() == 0, name


def test_the_foreground_count_is_exact_whatever_the_losses_precision():
    for dtype in (torch.bfloat16, torch.float16):
        sums = torch.tensor(8.0, dtype=dtype), torch.tensor(2.0, dtype=dtype)
        # Neither half precision nor float32 has that number.
        num = 2**24 + 1
        assert guided_losses(*sums, torch.tensor(num)).num_foreground.item() == num


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float32,) * 2])
def test_losses_keep_their_type_and_r_is_float32(dtypes):
    sums = [torch.tensor(8.0, dtype=d) for d in dtypes]
    losses = guided_losses(*sums, torch.tensor(4))
    assert (losses.loss_cls.dtype, losses.loss_loc.dtype) == dtypes
    assert losses.ratio.dtype == torch.float32


def test_ratio_is_zero_where_there_is_nothing_to_scale():
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert guide_ratio(zero, one).item() == 0
    assert guide_ratio(zero, zero).item() == 0
    assert guide_ratio(one, zero).item() == 0
    assert guide_ratio(4 * one, one, weight=2.0).item() == 0.5


def test_a_nan_is_not_hidden():
    nan, one = torch.tensor(float("nan")), torch.tensor(1.0)
    assert guided_losses(nan, one, torch.tensor(1)).loss_cls.isnan()
    assert guided_losses(one, nan, torch.tensor(1)).loss_loc.isnan()


# Several localization losses, such as box and centerness


class TestSeveralLocalizationLosses:
    def _sums(self, scale=1.0):
        generator = torch.Generator().manual_seed(2)
        sums = (scale * torch.rand(3, generator=generator) + 0.5).requires_grad_()
        return sums, torch.tensor(7)

    @pytest.mark.parametrize("weight", [1.0, 2.0])
    def test_the_mean_of_their_means_is_the_guide(self, weight):
        sums, num_foreground = self._sums()
        losses = guided_losses(sums[0], (sums[1], sums[2]), num_foreground, weight=weight)
        a, b = sums[1].item() / 7, sums[2].item() / 7
        assert [x.item() for x in losses.loss_loc] == pytest.approx([a, b])
        assert losses.loss_cls.item() == pytest.approx(weight * (a + b) / 2)
        assert losses.ratio.item() == pytest.approx(weight * (a + b) / 2 / (sums[0].item() / 7))
        gradient = torch.autograd.grad(losses.loss_cls, sums)[0]
        assert gradient.tolist() == pytest.approx([losses.ratio.item() / 7, 0, 0])

    def test_each_may_have_a_divisor_of_its_own(self):
        sums, num_foreground = self._sums()
        divisors = torch.tensor(7), torch.tensor(0.25)  # below 1, and still the divisor
        losses = guided_losses(
            sums[0], (sums[1], sums[2]), num_foreground, loc_normalizers=divisors
        )
        a, b = sums[1].item() / 7, sums[2].item() / 0.25
        assert [x.item() for x in losses.loss_loc] == pytest.approx([a, b])
        assert losses.loss_cls.item() == pytest.approx((a + b) / 2)
        assert losses.loss_cls_raw.item() == pytest.approx(sums[0].item() / 7)
        for loss, i, divisor in zip(losses.loss_loc, (1, 2), (7, 0.25)):
            gradient = torch.autograd.grad(loss, sums, retain_graph=True)[0]
            assert gradient[i].item() == pytest.approx(1 / divisor)
            assert gradient.count_nonzero() == 1

    def test_a_single_one_may_have_a_divisor_too(self):
        sums, num_foreground = self._sums()
        losses = guided_losses(
            sums[0], sums[1], num_foreground, loc_normalizers=(torch.tensor(3.5),)
        )
        assert losses.loss_loc.item() == pytest.approx(sums[1].item() / 3.5)
        assert losses.loss_cls.item() == pytest.approx(sums[1].item() / 3.5)

    @pytest.mark.parametrize("guide", ["iteration", 0.125])
    @pytest.mark.parametrize("scale", [1e-3, 1e4])
    def test_a_single_one_is_the_same_to_the_bit_alone_and_in_a_tuple(self, guide, scale):
        answers = []
        for wrap in (lambda x: x, lambda x: (x,)):
            sums, num_foreground = self._sums(scale)
            losses = guided_losses(sums[0], wrap(sums[1]), num_foreground, guide)
            loss_loc = losses.loss_loc if wrap(0) == 0 else losses.loss_loc[0]
            assert isinstance(loss_loc, torch.Tensor)
            gradient = torch.autograd.grad(losses.loss_cls + loss_loc, sums)[0]
            answers.append([losses.loss_cls, loss_loc, losses.ratio, losses.loss_cls_raw, gradient])
        assert all(torch.equal(a, b) for a, b in zip(*answers))

    def test_a_divisor_of_zero_beside_foreground_gives_a_finite_loss(self):
        sums, num_foreground = self._sums()
        losses = guided_losses(
            sums[0],
            (sums[1], sums[2] * 0),  # centerness 0 at every foreground point
            num_foreground,
            loc_normalizers=(torch.tensor(7), torch.tensor(0.0)),
        )
        assert losses.loss_loc[1].item() == 0
        assert losses.loss_cls.item() == pytest.approx(sums[1].item() / 7 / 2)
