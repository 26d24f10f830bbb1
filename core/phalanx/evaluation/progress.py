"""What an evaluation tells while it runs."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Listens to an evaluation; every method may do nothing."""

    def batch_chosen(self, subject: str, *, images: int) -> None:
        """So many images of this model are attacked at once, as memory has room."""

    def started(self, *, cells: int, images: int) -> None:
        """So many cells are asked for, or more of them, of so many images together."""

    def cell_started(self, label: str) -> None:
        """The cell of this name, such as ``clm, expected, pgd:steps=100``, begins."""

    def images_done(self, count: int) -> None:
        """So many images more are done."""

    def cell_finished(self, label: str, *, accuracy: float, stored: bool) -> None:
        """The cell came to this accuracy in [0, 1]; `stored` if nothing had to be computed."""

    def cell_failed(self, label: str, *, images: int, reason: str) -> None:
        """The cell could not be run; `images` of it were not done."""


class Silence:
    """Says nothing."""

    def batch_chosen(self, subject: str, *, images: int) -> None:
        """See `Progress`."""

    def started(self, *, cells: int, images: int) -> None:
        """See `Progress`."""

    def cell_started(self, label: str) -> None:
        """See `Progress`."""

    def images_done(self, count: int) -> None:
        """See `Progress`."""

    def cell_finished(self, label: str, *, accuracy: float, stored: bool) -> None:
        """See `Progress`."""

    def cell_failed(self, label: str, *, images: int, reason: str) -> None:
        """See `Progress`."""
