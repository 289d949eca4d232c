"""The config.yaml that a run saves repeats it to the last bit, though it begins at random."""

import pytest
from detectron2.config import LazyConfig
from detectron2.utils.env import seed_all_rng

from helpers.tiny_run import load, same, train_net, write_config
from helpers.yaml_files import FASTER
from sampling_free.config.load import load_config
from sampling_free.config.saved import keys_in_order
from sampling_free.engine.trainer import LazyTrainer


def first_weights(cfg):
    """Of the model, as the trainer builds it."""
    seed_all_rng(cfg.train.seed)
    return LazyTrainer.build_model(cfg).state_dict()


def saved(cfg, path):
    """The config again, as default_setup writes it."""
    with keys_in_order():
        LazyConfig.save(cfg, str(path))
    return load_config(str(path))


@pytest.mark.parametrize("variant", [None, "ohem"])
def test_the_parts_of_a_model_are_built_in_the_same_order(tmp_path, variant):
    config = write_config(tmp_path, "\nmodel.head.prior_prob = 0.02\n" if variant is None else "")
    cfg = load_config(config, ["model.num_classes=5", "train.seed=3"], variant=variant)
    again = saved(cfg, tmp_path / "config.yaml")
    assert list(again.model) == list(cfg.model) and list(again.train) == list(cfg.train)
    assert same(first_weights(again), first_weights(cfg))
    LazyConfig.save(cfg, str(tmp_path / "sorted.yaml"))
    in_other_order = load_config(str(tmp_path / "sorted.yaml"))
    assert not same(first_weights(in_other_order), first_weights(cfg)), "the order must matter here"


def test_of_a_yaml_config_too(tiny, tmp_path):
    cfg = load_config(tiny(FASTER), ["SOLVER.BASE_LR", "0.5"], sampling_free=True)
    again = saved(cfg, tmp_path / "saved.yaml")
    assert again.cfg == cfg.cfg and again.optimizer.lr == 0.5
    assert same(first_weights(again), first_weights(cfg))


@pytest.mark.long
def test_by_train_net(tmp_path):
    config, out = write_config(tmp_path), tmp_path / "out"
    first = train_net(config, "--variant", "focal", "train.max_iter=2", "train.seed=5")
    assert first.code == 0, first.err
    again = train_net(out / "config.yaml", f"train.output_dir={tmp_path}/again")
    assert again.code == 0, again.err
    a, b = (load(folder / "model_final.pth")["model"] for folder in (out, tmp_path / "again"))
    assert same(a, b)
