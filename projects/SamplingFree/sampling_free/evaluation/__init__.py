"""After the training: evaluators, score thresholds, pictures and curves."""
