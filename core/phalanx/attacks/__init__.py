"""The core's own attacks: balls, losses and one ascent loop as functions, attacks over them."""
