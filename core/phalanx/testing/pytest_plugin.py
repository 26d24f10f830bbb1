"""Fixtures for plugin authors; imports nothing heavy at start."""

from __future__ import annotations
