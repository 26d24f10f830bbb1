"""Measurements against other libraries; from the repository's root: `python -m bench.<name>`."""
