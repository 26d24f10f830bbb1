"""iGAT as a Phalanx plugin."""
