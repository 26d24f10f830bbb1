"""Diversity of an ensemble's members: measures of their answers and of their gradients."""

from __future__ import annotations

from phalanx.evaluation.diversity.measures import (
    ambiguity as ambiguity,
    attention as attention,
    discrimination_score as discrimination_score,
    entropy_measure as entropy_measure,
    interrater_agreement as interrater_agreement,
    model_robustness_average as model_robustness_average,
    pairwise_cosines as pairwise_cosines,
    smooth_margin as smooth_margin,
    squared_errors as squared_errors,
)
from phalanx.evaluation.diversity.members import MEANINGS as MEANINGS, diversity as diversity
