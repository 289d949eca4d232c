"""How large the imbalance of a config is, before and during the training."""
