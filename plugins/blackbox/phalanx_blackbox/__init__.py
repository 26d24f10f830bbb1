"""RayS and SignHunter as a Phalanx plugin."""
