"""The learning rate of another batch size: the linear scaling rule.

Goyal et al., Accurate, Large Minibatch SGD, arXiv 1706.02677, section 2.1: k times the images in a
batch, k times the learning rate.
"""

import logging

from omegaconf import DictConfig

from ..utils.errors import BadInput

logger = logging.getLogger(__name__)


def linear_factor(batch_size: int, reference_batch_size: int) -> float:
    """What a learning rate is multiplied by.

    Args:
        batch_size: images over all processes.
        reference_batch_size: that the learning rate was chosen for; 0 scales nothing.

    Returns:
        Above 0.
    """
    return batch_size / reference_batch_size if reference_batch_size else 1.0


def scale_learning_rates(cfg: DictConfig, optimizer):
    """Multiplies the rate of every parameter group, in place, as the config says; logs it.

    Args:
        cfg: ``train.reference_batch_size`` and ``dataloader.train.total_batch_size``.
        optimizer (torch.optim.Optimizer): fresh from the config; what a checkpoint holds has been
            scaled before.

    Raises:
        BadInput: the config does not say the batch size, or scales already.
    """
    reference = cfg.train.reference_batch_size
    if not reference:
        return
    batch_size = cfg.dataloader.train.get("total_batch_size", None)
    if type(batch_size) is not int or batch_size < 1:
        raise BadInput(
            f"train.reference_batch_size={reference}: needs dataloader.train.total_batch_size, "
            f"which is {batch_size!r}; give it, or set optimizer.lr by hand"
        )
    if "cfg" in cfg and cfg.cfg.SOLVER.REFERENCE_WORLD_SIZE:
        raise BadInput(
            f"train.reference_batch_size={reference}: SOLVER.REFERENCE_WORLD_SIZE scales the "
            "learning rate too; set one of the two to 0"
        )
    factor = linear_factor(batch_size, reference)
    for group in optimizer.param_groups:
        group["lr"] *= factor
    rate = max(group["lr"] for group in optimizer.param_groups)
    logger.info(
        f"Learning rate times {factor:.4g} = {rate:.4g}: {batch_size} images in a batch, "
        f"train.reference_batch_size={reference}."
    )


def warn_if_other(built: list[float], optimizer):
    """Says so where a resumed run goes on with other learning rates than its config has.

    Args:
        built: the rate of each parameter group, from the config.
        optimizer (torch.optim.Optimizer): as loaded from a checkpoint.
    """
    kept = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    if kept != built:
        logger.warning(
            f"Resumed with the checkpoint's learning rate, {max(kept):.4g}; the config's would be "
            f"{max(built):.4g}. For another one start anew from the weights, train.init_checkpoint."
        )
