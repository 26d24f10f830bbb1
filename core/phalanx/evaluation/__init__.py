"""Attacking trained models and scoring what comes out: protocols, cells, store, statistics."""
