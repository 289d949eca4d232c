from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage

from helpers.tiny import log_lines
from sampling_free.detectors.guide_log import GuideLog
from sampling_free.method.guided_loss import GuidedLosses


class TestGuideLog:
    def _losses(self, num_foreground, ratio=0.5):
        return GuidedLosses(*map(torch.tensor, (1.0, 2.0, ratio, 4.0, float(num_foreground))))

    def test_the_numbers_reach_the_event_storage(self):
        with EventStorage() as storage:
            GuideLog().write(self._losses(12), storage, {"num_pos_anchors": torch.tensor(3)})
        latest = {k: v for k, (v, _) in storage.latest().items()}
        assert latest == {
            "guide/r": 0.5,
            "guide/loss_cls_raw": 4.0,
            "guide/empty_batches": 0,
            "num_pos_anchors": 3.0,
        }

    def _run(self, pattern):
        log = GuideLog()
        storage = SimpleNamespace(put_scalars=dict, put_scalar=lambda *args, **kwargs: None)
        warned_at = []
        for i, num_foreground in enumerate(pattern):
            with log_lines("sampling_free.detectors.guide_log") as lines:
                log.write(self._losses(num_foreground), storage, {})
            warned_at += [i] * len(lines)
        return log, warned_at

    def test_empty_batches_are_counted(self):
        log, warned_at = self._run([3, 0, 0, 5, 0])
        assert (log.num_batches, log.num_empty) == (5, 3)
        assert warned_at == []

    @pytest.mark.parametrize("pattern", [[0] * 120, [1] * 30 + [0] * 90])
    def test_it_warns_once_when_more_than_a_fifth_are_empty(self, pattern):
        _, warned_at = self._run(pattern)
        assert len(warned_at) == 1

    def test_the_writers_get_the_running_count_and_not_its_median(self):
        log = GuideLog()
        with EventStorage() as storage:
            for i, num_foreground in enumerate([0] * 20 + [3] * 5):
                storage.iter = i
                log.write(self._losses(num_foreground), storage, {})
            written = storage.latest_with_smoothing_hint(window_size=20)
        assert written["guide/empty_batches"][0] == 20

    def test_several_heads_write_beside_each_other(self):
        rpn, roi, plain = GuideLog("rpn"), GuideLog("roi"), GuideLog()
        with EventStorage() as storage:
            rpn.write(
                self._losses(5, ratio=0.25), storage, {"rpn/num_pos_anchors": torch.tensor(7)}
            )
            for stage, num_foreground in enumerate((3, 0)):
                with storage.name_scope(f"stage{stage}"):
                    losses = self._losses(num_foreground, ratio=2.0 + stage)
                    GuideLog("roi").write(losses, storage, {})
            roi.write(self._losses(1, ratio=0.75), storage, {})
            plain.write(self._losses(0), storage, {})
        latest = {k: v for k, (v, _) in storage.latest().items()}
        raw = {f"{k}/loss_cls_raw": 4.0 for k in ("guide/rpn", "guide/roi", "guide")}
        raw |= {f"stage{k}/guide/roi/loss_cls_raw": 4.0 for k in (0, 1)}
        assert latest == {
            **raw,
            "guide/rpn/r": 0.25,
            "guide/rpn/empty_batches": 0,
            "rpn/num_pos_anchors": 7.0,
            "stage0/guide/roi/r": 2.0,
            "stage0/guide/roi/empty_batches": 0,
            "stage1/guide/roi/r": 3.0,
            "stage1/guide/roi/empty_batches": 1,
            "guide/roi/r": 0.75,
            "guide/roi/empty_batches": 0,
            "guide/r": 0.5,
            "guide/empty_batches": 1,
        }
        assert [x.num_empty for x in (rpn, roi, plain)] == [0, 0, 1]

    def test_the_warning_names_the_head(self):
        storage = SimpleNamespace(put_scalars=dict, put_scalar=lambda *args, **kwargs: None)
        log = GuideLog("rpn")
        with log_lines("sampling_free.detectors.guide_log") as lines:
            for _ in range(60):
                log.write(self._losses(0), storage, {})
        assert len(lines) == 1 and "guide/rpn/empty_batches: 100% of 50 batches" in lines[0]
