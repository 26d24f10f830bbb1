"""DVERGE as a Phalanx plugin."""
