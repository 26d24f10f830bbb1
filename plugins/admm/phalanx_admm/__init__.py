"""ADMM pruning as a Phalanx plugin."""
