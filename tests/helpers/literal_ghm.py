"""GHM-C in slow, literal loops, from its paper."""

from torch.nn import functional as F


class Literal:
    """The authors' algorithm in plain Python numbers: one bin, one sample, one class at a time."""

    def __init__(self, bins=30, momentum=0.75):
        self.bins, self.momentum = bins, momentum
        self.counts = [0.0] * bins

    def weights(self, logits, labels):
        """{(row, class): weight} of the loss that is summed, and the counts updated."""
        members = [[] for _ in range(self.bins)]
        num_valid = 0
        for i, label in enumerate(labels.tolist()):
            for k in range(logits.shape[1]):
                if label < 0:
                    continue
                num_valid += 1
                gradient = abs(logits[i, k].sigmoid().item() - float(label == k))
                for j in range(self.bins):
                    last = j == self.bins - 1
                    if j / self.bins <= gradient and (last or gradient < (j + 1) / self.bins):
                        members[j].append((i, k))
        num_bins = sum(bool(x) for x in members)
        weights = {}
        for j, pairs in enumerate(members):
            if pairs:
                new = (1 - self.momentum) * len(pairs)
                self.counts[j] = self.momentum * self.counts[j] + new
                for pair in pairs:
                    weights[pair] = num_valid / self.counts[j] / num_bins / num_valid
        return weights

    def __call__(self, logits, labels):
        total = 0.0
        for (i, k), weight in self.weights(logits, labels).items():
            x = logits[i, k].double()
            x = -x if labels[i] == k else x
            total += weight * F.softplus(x).item()
        return total
