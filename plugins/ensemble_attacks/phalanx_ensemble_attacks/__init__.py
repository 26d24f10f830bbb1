"""Attacks on ensembles as a Phalanx plugin."""
