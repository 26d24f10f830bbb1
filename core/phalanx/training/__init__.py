"""Training: phases, transforms, the trainer on Lightning Fabric, checkpoints; torch-free here."""
