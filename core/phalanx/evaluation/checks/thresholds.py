"""When each check warns and fails: one frozen, recorded table of thresholds.

A protocol may change them, name by name: what a table leaves out stays as it is here. Of a share, a
threshold of 0 reads 0.5 %: no finite number of images shows that a share is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from phalanx.evaluation.checks.shares import EXCLUDED
from phalanx.evaluation.findings import Status
from phalanx.specs import Spec

ZERO_READS = 0.005


def _read(share: float) -> float:
    return share or ZERO_READS


Share = Annotated[float, Field(ge=0.0, lt=1.0), AfterValidator(_read)]
"""A share of images; 0 reads 0.5 %."""


class Shares(Spec):
    """Of a share of images: passed when the lower end of its exact interval is above."""

    warn: Share | None = None
    fail: Share | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.warn is not None and self.fail is not None and self.warn > self.fail:
            raise ValueError(f"warns from {self.warn:g} on, so it cannot fail at {self.fail:g}")
        return self

    def words(self) -> str:
        """Such as ``warns above 0.5 %, fails above 2 % (lower end of the exact interval)``."""
        warn = None if self.warn is None else f"{100 * self.warn:g} %"
        fail = None if self.fail is None else f"{100 * self.fail:g} %"
        return f"{_joined('above', warn, fail)} (lower end of the exact interval)"


class Above(Spec):
    """Of a number that should be small."""

    warn: float | None = None
    fail: float | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.warn is not None and self.fail is not None and self.warn > self.fail:
            raise ValueError(f"warns above {self.warn:g}, so it cannot fail above {self.fail:g}")
        return self

    def status(self, value: float) -> Status:
        """What this value decides; NaN is above everything."""
        if self.fail is not None and not value <= self.fail:
            return "fail"
        return "warn" if self.warn is not None and not value <= self.warn else "pass"

    def words(self) -> str:
        """Such as ``fails above 0.0001``."""
        return _joined("above", _plain(self.warn), _plain(self.fail))


class Below(Spec):
    """Of a number that should be large, such as a cosine."""

    warn: float | None = None
    fail: float | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.warn is not None and self.fail is not None and self.warn < self.fail:
            raise ValueError(f"warns below {self.warn:g}, so it cannot fail below {self.fail:g}")
        return self

    def status(self, value: float) -> Status:
        """What this value decides; NaN is below everything."""
        if self.fail is not None and not value >= self.fail:
            return "fail"
        return "warn" if self.warn is not None and not value >= self.warn else "pass"

    def words(self) -> str:
        """Such as ``warns below 0.95, fails below 0.7``."""
        return _joined("below", _plain(self.warn), _plain(self.fail))


def _plain(number: float | None) -> str | None:
    return None if number is None else f"{number:g}"


def _joined(side: str, warn: str | None, fail: str | None) -> str:
    parts = [(word, value) for word, value in (("warns", warn), ("fails", fail)) if value]
    return ", ".join(f"{word} {side} {value}" for word, value in parts) or "never fails"


class Thresholds(Spec):
    """The thresholds of every check; shares are of images, other numbers as described."""

    logits: float = Field(1e-5, gt=0.0, description="How near to probabilities scores may come.")
    stochastic: Above = Field(Above(fail=1e-4), description="Distance of normalised scores.")
    batch_dependence: Above = Field(Above(fail=1e-5), description="Distance of normalised scores.")
    grad_bad: Shares = Shares(warn=0.0, fail=0.05)
    grad_fd: Below = Field(Below(warn=0.95, fail=0.7), description="Median cosine.")
    grad_deployed: Below = Field(Below(warn=0.999, fail=0.99), description="Median cosine.")
    black_box: Shares = Shares(warn=0.005, fail=0.02)
    transfer: Shares = Shares(warn=0.005, fail=0.02)
    unbounded: Shares = Field(Shares(warn=0.0, fail=0.01), description="Images not broken.")
    converged_steps: Shares = Shares(warn=0.005, fail=0.02)
    converged_restarts: Shares = Shares(warn=0.005, fail=0.02)
    budget: Above = Field(Above(fail=1e-6), description="Excess over ball or box, in pixel units.")
    eot_k: Shares = Field(
        Shares(warn=0.01, fail=0.01),
        description="Warn: gain of twice the draws; fail: loss with the randomness frozen.",
    )
    ensemble_reweight: Shares = Shares(warn=0.01, fail=0.05)
    adaptive: float = Field(0.05, gt=0.0, lt=1.0, description="Level of the one-sided McNemar.")
    one_step: Shares = Shares(warn=0.0, fail=0.01)
    silent: Shares = Shares(warn=0.0, fail=0.01)
    incomplete: Shares = Field(
        Shares(warn=0.25, fail=0.25), description="Fails only together with converged_steps."
    )
    unstable: Above = Field(Above(warn=0.5), description="Mean relative change of the margin.")
    loss_rank: Below = Field(Below(warn=0.9, fail=0.6), description="Median rank correlation.")
    ensemble_dominance: Shares = Shares(warn=0.2, fail=0.6)
    noise_gain: Shares = Shares(warn=0.0, fail=0.01)
    monotone: Shares = Shares(warn=0.0, fail=0.01)
    chance: Shares = Field(Shares(warn=0.02, fail=0.10), description="Accuracy above 1/K.")
    losses: Shares = Shares(warn=0.01, fail=0.03)
    binarization: Shares = Field(Shares(warn=0.05, fail=0.20), description="Images not broken.")
    binarization_random: float = Field(
        0.5, ge=0.0, le=1.0, description="Success of random points above which the test is easy."
    )
    excluded: float = Field(
        EXCLUDED, gt=0.0, lt=1.0, description="Share that zero findings must exclude."
    )

    @model_validator(mode="before")
    @classmethod
    def _over_the_defaults(cls, data: Any) -> Any:
        """A table that names one limit of a check changes that one alone."""
        if not isinstance(data, Mapping):
            return data
        found = dict(data)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Spec) and isinstance(found.get(name), Mapping):
                found[name] = {**field.default.model_dump(exclude_none=True), **found[name]}
        return found

    def changes(self) -> Iterator[str]:
        """What is not as by default, in words."""
        for name, value in self:
            if value != type(self).model_fields[name].default:
                said = value.words() if isinstance(value, Shares | Above | Below) else f"at {value}"
                yield f"{name} {said}"


DEFAULTS = Thresholds()
