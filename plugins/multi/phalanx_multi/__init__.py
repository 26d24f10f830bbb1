"""Training against several perturbations as a Phalanx plugin."""
