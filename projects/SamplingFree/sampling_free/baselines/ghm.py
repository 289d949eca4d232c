"""GHM-C: each sample is weighed by how few others have a gradient of the same size.

    x_ik   logit of class k at sample i, y_ik in {0, 1}     g = |sigmoid(x) - y| in [0, 1]

[0, 1] is cut into M bins of equal width. R_j is the number of g in bin j, and S_j its running
average, S_j <- momentum * S_j + (1 - momentum) * R_j, from 0 on. The loss is

    sum over i, k of  BCE(x_ik, y_ik) / (n S_j),  j the bin of g_ik

Source: Li, Liu, Wang, arXiv 1811.05181, sections "GHM-C Loss" and "Unit Region Approximation" and
"EMA". There n is M, the number of all bins, and S_j decays where bin j is empty. In the authors'
code (github.com/libuyu/GHM_Detection) n counts the bins that are not empty in this batch, and S_j
of an empty bin stays as it is; so it is here, as the published numbers came from it. In two things
this is not their code. It calls the loss for each level of the pyramid, one after the other, with
the running counts shared, and adds the five up, which made the loss about twice as large; here a
batch is a batch, as in the paper. And R_j is counted over all processes, not by each alone: so the
loss does not depend on how many there are, and the one S of a checkpoint is that of all.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..method.guided_loss import sum_over_processes
from ..utils.errors import BadInput
from .signed_logits import signed_logits

# Of the paper's experiments.
BINS = 30
MOMENTUM = 0.75


class GHMC(nn.Module):
    """The loss with its running counts, a buffer; a checkpoint without it loads too."""

    def __init__(self, bins: int = BINS, momentum: float = MOMENTUM, key: str = "model"):
        """Checks the hyperparameters and starts without counts.

        Args:
            bins: M.
            momentum: of the running counts, in [0, 1); 0 takes those of the batch.
            key: where a config has the two.

        Raises:
            BadInput: for another number.
        """
        super().__init__()
        if type(bins) is not int or bins < 1:
            raise BadInput(f"{key}.bins={bins!r}: give a whole number from 1 up")
        if not (isinstance(momentum, (int, float)) and 0 <= momentum < 1):
            raise BadInput(f"{key}.momentum={momentum!r}: give a number in [0, 1)")
        self.bins, self.momentum = bins, momentum
        # Not a number that float16 or float32 hold: there are millions of samples.
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.float64))

    @torch.jit.unused  # scripted detectors infer
    def forward(self, logits: list[Tensor], labels: list[Tensor]) -> Tensor:
        """Computes the harmonized loss of a batch.

        Args:
            logits: of each level (..., Ri, K), any floating type; computed in
                float32 whatever it is, also under autocast.
            labels: of each level (..., Ri), integer: -1 ignored, 0..K-1 foreground
                of that class, K background.

        Returns:
            Float32 scalar, connected to ``logits`` even when no row is valid. The weights
            have no gradient.
        """
        with torch.autocast(logits[0].device.type, enabled=False):
            signed = [_valid(x, y) for x, y in zip(logits, labels)]
            bins = [self._bins_of(x) for x in signed]
            counts = sum(x.bincount(minlength=self.bins) for x in bins)
            weights = self._weights(counts)
            # From the counts of 30 bins to a weight for each sample and class.
            return sum(
                (F.softplus(x).flatten() * weights.index_select(0, j)).sum()
                for x, j in zip(signed, bins)
            )

    @torch.no_grad()
    def _bins_of(self, signed):
        """(Vi * K,) int32, the bin of each gradient; 1.0 belongs to the last."""
        edges = torch.arange(1, self.bins, device=signed.device) / self.bins
        return torch.bucketize(signed.sigmoid().flatten(), edges, out_int32=True, right=True)

    @torch.no_grad()
    def _weights(self, counts):
        """(M,) float32, 1 / (n S_j), after the running counts have got those of this batch."""
        counts, num_processes = sum_over_processes(*counts)
        present = counts > 0
        running = self.momentum * self.counts + (1 - self.momentum) * counts
        self.counts.copy_(torch.where(present, running, self.counts))
        weights = torch.where(present, 1 / (present.sum() * self.counts), 0)
        # DistributedDataParallel averages the gradients over processes, hence the factor.
        return (weights * num_processes).float()

    def extra_repr(self):
        return f"bins={self.bins}, momentum={self.momentum}"

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, *args):
        mine = []
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, mine, *args)


def _valid(logits, labels):
    """(V, K) of the rows that are not ignored; see :func:`signed_logits`."""
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    rows = (labels >= 0).nonzero().squeeze(1)
    return signed_logits(logits[rows], labels[rows])
