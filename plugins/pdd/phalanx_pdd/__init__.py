"""PDD as a Phalanx plugin."""
