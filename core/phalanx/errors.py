"""Every exception and warning that Phalanx raises, in one tree.

::

    PhalanxError                     exit code 1: the run failed
    ├─ PluginError                   one plugin is at fault
    │  ├─ PluginLoadError            its import or registration failed (cause chained)
    │  ├─ IncompatiblePluginError    it asks for another version of the core
    │  ├─ DuplicatePluginError       two distributions claim one id, or two plugins one component
    │  └─ PluginContractError        it does not do what it declares
    ├─ InputError                    exit code 2: what was asked for is wrong (also a ValueError)
    │  ├─ UnknownComponentError      no such defense, attack, … (also a LookupError)
    │  ├─ ConfigError                a config with one or several problems, all told at once
    │  ├─ ThreatModelError           a norm or budget that this attack or data set cannot take
    │  ├─ DataError                  a data set is missing or not what it should be
    │  ├─ ArtifactError              a checkpoint, run or report is missing, damaged or foreign
    │  └─ OutputError                a place for results cannot be written, or is in use
    ├─ StorageError                  a disk is full or fails while results are written
    ├─ TrainingError                 a loss that is not finite, phases that share weights
    └─ EvaluationError
       ├─ BudgetViolation            a returned example lies outside the ball or the box
       ├─ NonFiniteError             NaN or infinity in scores or examples
       └─ AttackInapplicable         this attack cannot run on this model, or lacks a package

    PhalanxWarning                   (a UserWarning)
    ├─ PluginHookWarning             an observer hook failed
    └─ ValidityWarning               a number may not mean what it seems to

Each message says what was asked, what was found, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class PhalanxError(Exception):
    """Base of all errors that Phalanx raises on purpose; `exit_code` is the CLI's."""

    exit_code = 1


class PluginError(PhalanxError):
    """One plugin is at fault; `plugin` is its id, `dist` and `version` its distribution."""

    def __init__(self, message: str, *, plugin: str, dist: str = "", version: str = "") -> None:
        super().__init__(message)
        self.plugin = plugin
        self.dist = dist
        self.version = version


class PluginLoadError(PluginError):
    """A plugin's import or registration failed; the cause is chained."""


class IncompatiblePluginError(PluginError):
    """A plugin asks for a version of the core that is not the one running."""


class DuplicatePluginError(PluginError):
    """Two distributions claim one plugin id, or two plugins one component name."""


class PluginContractError(PluginError):
    """A plugin does not do what it declares."""


class InputError(PhalanxError, ValueError):
    """What the user asked for is wrong."""

    exit_code = 2


class UnknownComponentError(InputError, LookupError):
    """No component of that kind has that name."""

    def __str__(self) -> str:  # LookupError's subclasses would print a repr
        return str(self.args[0]) if self.args else ""


class ConfigError(InputError):
    """A config has problems; `problems` lists every one as 'key.path: what is wrong'."""

    def __init__(self, problems: Sequence[str], *, source: str = "config") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"{source}: {count}{lines}")


class ThreatModelError(InputError):
    """A norm or budget that this attack or data set cannot take."""


class DataError(InputError):
    """A data set is missing, or is not what it should be."""


class ArtifactError(InputError):
    """A checkpoint, run folder or report is missing, damaged or of another config."""


class OutputError(InputError):
    """A place for results cannot be written, or another process writes there."""


class StorageError(PhalanxError):
    """A file could not be written: the disk is full, or fails.

    `problem` says which file and why, `kept` what is safe and how to go on; the cause is chained.
    """

    def __init__(self, problem: str, kept: str = "") -> None:
        self.problem = problem
        self.kept = kept
        super().__init__(f"{problem}; {kept}" if kept else problem)


class TrainingError(PhalanxError):
    """Training cannot go on."""


class EvaluationError(PhalanxError):
    """Evaluation cannot go on."""


class BudgetViolation(EvaluationError):
    """A returned example lies outside the ball or the box."""


class NonFiniteError(EvaluationError):
    """Scores or examples hold NaN or infinity."""


class AttackInapplicable(EvaluationError):
    """This attack cannot run on this model, or lacks a package."""


class PhalanxWarning(UserWarning):
    """Base of all warnings that Phalanx issues."""


class PluginHookWarning(PhalanxWarning):
    """An observer hook of a plugin failed and was left out."""


class ValidityWarning(PhalanxWarning):
    """A number may not mean what it seems to."""
