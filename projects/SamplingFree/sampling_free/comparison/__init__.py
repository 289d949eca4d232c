"""Training several variants, and comparing them over seeds."""
