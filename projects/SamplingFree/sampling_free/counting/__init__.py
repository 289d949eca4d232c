"""The number of foreground samples in a training set, from which the prior follows."""
