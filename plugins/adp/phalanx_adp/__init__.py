"""ADP as a Phalanx plugin."""
