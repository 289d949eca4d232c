"""The learning rate that follows the batch size."""

import pytest
import torch
from omegaconf import OmegaConf

from helpers.tiny_run import log_lines, metrics, trainer, write_config
from helpers.yaml_files import zoo
from sampling_free.config.cfg_node import lazy_from_cfg_node
from sampling_free.config.load import load_config
from sampling_free.engine.lr_scaling import linear_factor, scale_learning_rates
from sampling_free.utils.errors import BadInput

LOG = "sampling_free.engine.lr_scaling"


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


def rates(made):
    return [group["lr"] for group in made.optimizer.param_groups]


@pytest.mark.parametrize(
    "batch_size, reference, factor", [(32, 16, 2.0), (4, 16, 0.25), (16, 16, 1.0), (7, 0, 1.0)]
)
def test_k_times_the_images_k_times_the_rate(batch_size, reference, factor):
    assert linear_factor(batch_size, reference) == factor


def test_groups_with_rates_of_their_own_keep_their_ratio():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weights[0]], "lr": 0.01}, {"params": [weights[1]], "lr": 0.03}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    cfg = {"train": {"reference_batch_size": 4}, "dataloader": {"train": {"total_batch_size": 12}}}
    scale_learning_rates(OmegaConf.create(cfg), optimizer)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.03, 0.09])


def test_the_whole_schedule_is_scaled_and_one_line_says_so(tmp_path, config):
    plain = trainer(config)
    with log_lines(LOG) as lines:
        made = trainer(config, "train.reference_batch_size=8")  # of a batch of 2
    assert rates(made) == [rate / 4 for rate in rates(plain)] and len(lines) == 1
    assert "times 0.25 = " in lines[0] and "2 images" in lines[0]
    found = []
    for one in (plain, made):  # of a repeated iteration the last is read
        one.train()
        found.append({i: r["lr"] for i, r in metrics(tmp_path / "out").items() if "lr" in r})
    assert len(found[0]) == 6
    assert found[1] == pytest.approx({i: rate / 4 for i, rate in found[0].items()})


def test_without_the_key_nothing_is_scaled_or_said(config):
    with log_lines(LOG) as lines:
        made = trainer(config)
    assert set(rates(made)) == {load_config(config).optimizer.lr} and lines == []


class TestResumed:
    KEY = "train.reference_batch_size=8"

    @pytest.fixture
    def stopped(self, config):
        made = trainer(config, self.KEY, "train.max_iter=3")
        initial = rates(made)
        made.train()
        return config, initial

    @pytest.mark.parametrize("batch_size", [2, 4])
    def test_is_not_scaled_twice(self, stopped, batch_size):
        config, initial = stopped
        size = f"dataloader.train.total_batch_size={batch_size}"
        made = trainer(config, self.KEY, size)
        with log_lines(LOG) as lines:
            made.resume_or_load(resume=True)
        assert [g["initial_lr"] for g in made.optimizer.param_groups] == initial
        made.train()
        assert [g["initial_lr"] for g in made.optimizer.param_groups] == initial
        if batch_size == 2:
            assert lines == []
        else:
            (line,) = lines
            assert f"learning rate, {max(initial):.4g}; the config's would be" in line
            assert f"{2 * max(initial):.4g}" in line


@pytest.mark.parametrize("value", ["-1", "2.5", "True", "null", "many"])
def test_a_bad_value_is_one_line(config, value):
    with pytest.raises(BadInput, match="train.reference_batch_size"):
        load_config(config, [f"train.reference_batch_size={value}"])


def test_a_loader_without_a_batch_size_is_named(config):
    cfg = load_config(config, ["train.reference_batch_size=8"])
    del cfg.dataloader.train["total_batch_size"]
    with pytest.raises(BadInput, match="needs dataloader.train.total_batch_size"):
        scale_learning_rates(cfg, None)


class TestYaml:
    """Detectron2's own key scales batch, rate and schedule with the processes; ours the rate."""

    def test_our_key_takes_the_images_of_the_yaml_config(self):
        cfg = lazy_from_cfg_node(zoo())
        cfg.train.reference_batch_size = 4
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        scale_learning_rates(cfg, optimizer)
        assert optimizer.param_groups[0]["lr"] == 0.5 * zoo().SOLVER.IMS_PER_BATCH / 4

    def test_both_at_once_are_refused(self):
        node = zoo()
        node.SOLVER.REFERENCE_WORLD_SIZE = 1
        cfg = lazy_from_cfg_node(node)
        cfg.train.reference_batch_size = 4
        with pytest.raises(BadInput, match="SOLVER.REFERENCE_WORLD_SIZE scales"):
            scale_learning_rates(cfg, None)

    @pytest.mark.parametrize("workers", [3, -1])
    def test_processes_that_cannot_share_the_batch_are_one_line(self, workers):
        node = zoo()
        node.SOLVER.REFERENCE_WORLD_SIZE = workers
        with pytest.raises(BadInput, match=f"REFERENCE_WORLD_SIZE {workers}: .*IMS_PER_BATCH = "):
            lazy_from_cfg_node(node)
