"""Detectron2's DefaultTrainer driven by a LazyConfig: ``LazyTrainer``."""

import logging
import os
import weakref

import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.engine import hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import (
    COCOEvaluator,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, TensorboardXWriter
from omegaconf import DictConfig

from ..checkpoint.checkpointer import NamingCheckpointer, load_trained
from ..data.datasets import (
    check_ground_truth,
    evaluators_of,
    require_image_id,
    test_loader,
)
from ..data.prepare import prepare_data, train_loader
from ..diagnosis.monitor import ImbalanceMonitor
from ..evaluation import best_threshold
from ..evaluation.evaluators import built_evaluators
from ..evaluation.test_sets import by_task, each_test_set, metric_of
from ..utils.errors import BadInput, require_writable_folder
from ..utils.files import write_json
from ..utils.models import with_present_device
from .float32_losses import losses_in_float32
from .hooks import (
    FinalPictures,
    KeepingCheckpointer,
    PeakMemory,
    ResumableWriter,
    ShortHistories,
    StatefulBestCheckpointer,
)
from .lr_scaling import scale_learning_rates
from .metrics_file import StrictJSONWriter
from .prior_init import PriorInit
from .resumable import ResumableTrainer
from .step import PrecisionTrainer

logger = logging.getLogger(__name__)

METRICS = "metrics.json"  # Detectron2's name
EVALUATION = "evaluation.json"  # of --eval-only: the results as in metrics.json


class LazyTrainer(ResumableTrainer):
    """Trains what a LazyConfig describes, with Detectron2's loop, hooks and checkpoints.

    ``cfg`` has Detectron2's nodes (model, optimizer, lr_multiplier, dataloader, train) and the
    keys of ``train`` that ``sampling_free.config.load.TRAIN_DEFAULTS`` adds; read it with
    ``sampling_free.load_config``. The training set is checked before it is used. Works for
    any LazyConfig detector, sampling-free or not.
    """

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg = with_present_device(cfg)
        if cfg.train.device == "cpu":
            # TorchScript compiles fvcore's focal loss anew after its first calls and then rounds
            # otherwise, so that a resumed run would differ in the last bit.
            torch.jit.set_fusion_strategy([])
        require_writable_folder("train.output_dir", cfg.train.output_dir)
        # A mistake in what is evaluated is to be known before the training.
        sets = each_test_set(cfg).values() if cfg.dataloader.get("evaluator") else ()
        tests = [one.dataloader.test for one in sets]
        data = prepare_data(cfg, tests)
        self.mapper = data.mapper
        self.check_evaluation(cfg)

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        scale_learning_rates(cfg, optimizer)
        loader = self.build_train_loader(cfg, data.dicts, data.mapper)
        dtype = cfg.train.amp.dtype if cfg.train.amp.enabled else None
        if dtype and type(model) is FCOS:
            losses_in_float32(model)
        ddp = dict(cfg.train.ddp)
        if cfg.train.device == "cpu":
            ddp["device_ids"] = None
        model = create_ddp_model(model, **ddp)
        self._trainer = PrecisionTrainer(
            model, loader, optimizer, cfg.train.device, dtype, cfg.train.skip_nonfinite
        )

        self._trainer.wants_to_stop = lambda: self.interruption.number is not None
        self.start_iter = 0
        self.max_iter = cfg.train.max_iter
        self.prior_init = PriorInit(
            data.dicts,
            data.mapper,
            data.names,
            output_dir=cfg.train.output_dir,
            prior_file=cfg.train.prior_file,
            reset_prior=cfg.train.reset_prior,
            follow_loader=True,
        )
        self.checkpointer = NamingCheckpointer(
            model,
            cfg.train.output_dir,
            allow_pickle=cfg.train.allow_pickle,
            trainer=weakref.proxy(self),
            prior=self.prior_init,
        )
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg):
        model = instantiate(cfg.model).to(cfg.train.device)
        logger.info(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
        cfg.optimizer.params.pop("model")  # a config is saved and printed, a model is not
        clip = get_cfg()
        for key, value in cfg.train.clip_gradients.items():
            clip.SOLVER.CLIP_GRADIENTS[key.upper()] = value
        return maybe_add_gradient_clipping(clip, optimizer)

    @classmethod
    def build_train_loader(cls, cfg, dataset, mapper):
        return train_loader(cfg.dataloader.train, dataset, mapper)

    @classmethod
    def build_evaluator(cls, cfg):
        """The evaluators of a config that has one test set; to be overridden."""
        return built_evaluators(cfg)

    @classmethod
    def check_evaluation(cls, cfg: DictConfig):
        """Builds the evaluators of all test sets and drops them, for mistakes to be known now.

        Args:
            cfg: without an evaluator nothing is checked.

        Raises:
            BadInput: one cannot be built, or could not measure.
        """
        if not cfg.dataloader.get("evaluator"):
            return
        for one in each_test_set(cfg).values():
            loader = test_loader(one.dataloader.test, cfg.model)
            cls.build_evaluator(one)
            check_ground_truth(one.dataloader.evaluator, cfg.model)  # what was converted to COCO's
            require_image_id(loader, one.dataloader)

    @classmethod
    def test(cls, cfg, model) -> dict:
        """Evaluates, prints Detectron2's lines, and stores the score threshold of best F1.

        Returns:
            Task -> metric -> value; of several test sets by their names. Empty if the config
            has no evaluator.
        """
        if not cfg.dataloader.get("evaluator"):
            return {}
        results = {}
        for name, one in each_test_set(cfg).items():
            loader = test_loader(one.dataloader.test, cfg.model)
            evaluator = cls.build_evaluator(one)
            found = inference_on_dataset(model, loader, evaluator) or {}
            if comm.is_main_process():
                logger.info(f"Evaluation results for {name or 'the test set'} in csv format:")
                print_csv_format(found)
                coco = [e for e in evaluators_of(evaluator) if isinstance(e, COCOEvaluator)]
                if not results and "bbox" in found and coco and coco[0]._output_dir:
                    best = best_threshold.threshold_from_evaluator(coco[0])
                    best.save(os.path.join(cfg.train.output_dir, best_threshold.FILE_NAME))
            results[name] = found
        return results if len(results) > 1 else found

    def build_hooks(self):
        train = self.cfg.train
        main = comm.is_main_process()

        def evaluate():
            with self.interruption.at_once():  # it may take longer than a cluster waits
                self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        scheduler = instantiate(self.cfg.lr_multiplier)
        best = train.best_metric and StatefulBestCheckpointer(
            train.eval_period, self.checkpointer, metric_of(self.cfg, train.best_metric)
        )
        return [
            hooks.IterationTimer(),
            PeakMemory() if torch.device(train.device).type == "cuda" else None,
            hooks.LRScheduler(scheduler=scheduler),
            self.prior_init,
            ImbalanceMonitor(train.monitor_period, train.output_dir)
            if train.monitor_period
            else None,
            KeepingCheckpointer(self.checkpointer, **train.checkpointer) if main else None,
            hooks.EvalHook(train.eval_period, evaluate),
            best if best and main else None,
            ResumableWriter(
                self.build_writers, os.path.join(train.output_dir, METRICS), train.log_period
            )
            if main
            else None,
            ShortHistories(),
            FinalPictures(self.cfg) if main else None,
        ]

    def build_writers(self):
        folder = self.cfg.train.output_dir
        return [
            CommonMetricPrinter(self.max_iter),
            StrictJSONWriter(os.path.join(folder, METRICS)),
            TensorboardXWriter(folder),
        ]

    def train(self):
        """Trains to ``train.max_iter``; returns the last evaluation, checked if so configured."""
        super().train()
        results = getattr(self, "_last_eval_results", {})
        check_expected(self.cfg, results)
        return results


def check_expected(cfg, results):
    """Exit code 1 if ``results`` are not within ``train.expected_results``."""
    expected = [list(row) for row in cfg.train.expected_results]
    if expected and comm.is_main_process():
        results = {**{task: {} for task, *_ in expected}, **by_task(cfg, results)}
        verify_results(CfgNode({"TEST": {"EXPECTED_RESULTS": expected}}), results)


def evaluate_only(cfg: DictConfig, resume: bool = False) -> dict:
    """Loads weights and evaluates, training nothing and measuring no prior.

    Args:
        cfg: ``train.init_checkpoint`` names the weights.
        resume: take the last checkpoint of ``train.output_dir`` instead.

    Returns:
        As :meth:`LazyTrainer.test`; written to ``EVALUATION`` in ``train.output_dir`` too.
    """
    cfg = with_present_device(cfg)
    require_writable_folder("train.output_dir", cfg.train.output_dir)
    model = LazyTrainer.build_model(cfg)
    checkpointer = NamingCheckpointer(model, cfg.train.output_dir)
    path = cfg.train.init_checkpoint
    if resume:
        path = checkpointer.get_checkpoint_file() if checkpointer.has_checkpoint() else ""
    if not path:
        raise BadInput(
            "--eval-only needs weights: give train.init_checkpoint=FILE, or --resume for the last "
            f"checkpoint in {cfg.train.output_dir}"
        )
    load_trained(model, path, allow_pickle=cfg.train.allow_pickle)
    LazyTrainer.check_evaluation(cfg)
    results = LazyTrainer.test(cfg, model)
    if comm.is_main_process():
        path = os.path.join(cfg.train.output_dir, EVALUATION)
        write_json(path, flatten_results_dict(results), default=str)
    check_expected(cfg, results)
    return results
