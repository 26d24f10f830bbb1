"""MoL as a Phalanx plugin."""
