"""The guide's numbers in the event storage, and the warning about empty batches."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from helpers.tiny import log_lines
from sampling_free.detectors.guide_log import GuideLog
from sampling_free.method.guided_loss import GuidedLosses


def losses(num_foreground, ratio=0.5):
    return GuidedLosses(*map(torch.tensor, (1.0, 2.0, ratio, 4.0, float(num_foreground))))


def run(log, pattern):
    """Batches at which it warned, the lines, and the storage."""
    warned_at, lines = [], []
    with EventStorage() as storage:
        for storage.iter, num_foreground in enumerate(pattern):
            with log_lines("sampling_free.detectors.guide_log") as new:
                log.write(losses(num_foreground), storage, {})
            warned_at += [storage.iter] * len(new)
            lines += new
    return warned_at, lines, storage


def test_several_heads_write_beside_each_other():
    scalars = {"rpn/num_pos_anchors": torch.tensor(7)}
    with EventStorage() as storage:
        GuideLog("rpn").write(losses(5, ratio=0.25), storage, scalars)
        with storage.name_scope("stage1"):
            GuideLog("roi").write(losses(0, ratio=3.0), storage, {})
        GuideLog().write(losses(12), storage, {})
    assert {k: v for k, (v, _) in storage.latest().items()} == {
        "guide/rpn/r": 0.25,
        "guide/rpn/loss_cls_raw": 4.0,
        "guide/rpn/empty_batches": 0,
        "rpn/num_pos_anchors": 7.0,
        "stage1/guide/roi/r": 3.0,
        "stage1/guide/roi/loss_cls_raw": 4.0,
        "stage1/guide/roi/empty_batches": 1,
        "guide/r": 0.5,
        "guide/loss_cls_raw": 4.0,
        "guide/empty_batches": 0,
    }


def test_the_writers_get_the_running_count_of_empty_batches_and_not_its_median():
    log = GuideLog()
    warned_at, _, storage = run(log, [0] * 20 + [3] * 5)
    assert (log.num_batches, log.num_empty, warned_at) == (25, 20, [])
    written = storage.latest_with_smoothing_hint(window_size=20)
    assert written["guide/empty_batches"][0] == 20


@pytest.mark.parametrize("pattern", [[0] * 120, [1] * 30 + [0] * 90])
def test_it_warns_once_when_more_than_a_fifth_are_empty_and_names_the_head(pattern):
    warned_at, lines, _ = run(GuideLog("rpn"), pattern)
    assert warned_at == [49] and "guide/rpn/empty_batches: " in lines[0]
    assert "of 50 batches" in lines[0]
