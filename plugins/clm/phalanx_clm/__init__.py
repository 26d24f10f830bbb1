"""CLM as a Phalanx plugin."""
