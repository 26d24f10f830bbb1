"""Natural perturbations as a Phalanx plugin."""
