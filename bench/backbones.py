"""Which families of timm can be members: one small untrained network of each, two images.

A member must be split at its classifier, and its halves must give the network's own scores;
`phalanx.nn.build_member` checks that. A family is a module of `timm.models`; it stands for its
smallest network by number of parameters among those whose names promise few, and for its smallest
distilled one where it has any, since two classifiers are another case.

    python -m bench.backbones                 # goes on with bench/results/backbones.json
    python -m bench.backbones resnet swin_transformer --out two.json
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import timm
import torch

from phalanx.config import Backbone
from phalanx.errors import ConfigError
from phalanx.nn import build_member
from phalanx.specs import Task

RESULT = Path(__file__).parent / "results" / "backbones.json"
SECONDS = 60
"""Of processor time, for one network."""
_LATE = f"not known: it took more than {SECONDS} s of processor time"
CANDIDATES = 3
"""How many of a family's names are built without memory to find the smallest."""

_SMALL = (
    r"_atto|_femto|_pico|_nano|_zepto",
    r"_xxt|_xxs|_xt|_tiny|_ti_|_mini|_xxtiny|_xtiny|_9_|_s0|_t0|_m0|_b0|_050|_035|_002",
    r"_xs|_s1|_b1|_m1|_l1|_1[0-9]$|[a-z]1[0-9][a-z]?$|_18|_128|_12_|_14|_xsmall|_x_small",
    r"_small|_s_|_s$|_a$|26t|_d1_|_0_",
)
"""What names of small networks contain, the smallest first."""
_LEFT_OUT = re.compile(r"^test_|_enc$|_features$|_merge$|_align$")
"""Networks for timm's own tests, and those without a classifier."""


def main() -> None:
    """Try each family that is asked for, or all, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="modules of timm.models; absent: all")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # timm's deprecations say nothing about the halves
    torch.set_num_threads(1)
    rows = _finished(asked.out)
    done = {row["family"] for row in rows}
    for family in asked.families or families():
        if family not in done:
            found = [{"family": family, "model": m, **tried(m)} for m in representatives(family)]
            rows += found
            _write(asked.out, rows)
            print(*map(json.dumps, found), sep="\n", flush=True)
    refused = [row for row in rows if not row["accepted"]]
    print(f"{len(rows) - len(refused)} of {len(rows)} networks accepted; written to {asked.out}")


def _finished(path: Path) -> list[dict[str, Any]]:
    """The rows that an earlier call wrote with the same versions."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = found["networks"] if found["versions"] == _versions() else []
    known = families()
    return [row for row in rows if row["family"] in known]


def _versions() -> dict[str, str]:
    return {"timm": timm.__version__, "torch": torch.__version__}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {"versions": _versions(), "networks": rows}
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def families() -> list[str]:
    """Those of timm itself; Phalanx's backbones stand in the same registry."""
    return [name for name in timm.list_modules() if f"timm.models.{name}" in sys.modules]


def representatives(family: str) -> list[str]:
    """The family's smallest network, and its smallest distilled one."""
    names = timm.list_models(module=family)
    names = [name for name in names if not _LEFT_OUT.search(name)] or names
    distilled = [name for name in names if "dist" in name]
    plain = [name for name in names if name not in distilled]
    return [_smallest(group) for group in (plain, distilled) if group]


def _smallest(names: list[str]) -> str:
    ranked = sorted(names, key=lambda name: (_rank(name), len(name), name))[:CANDIDATES]
    return min(ranked, key=_parameters)


def _rank(name: str) -> int:
    found = [place for place, pattern in enumerate(_SMALL) if re.search(pattern, name)]
    return found[0] if found else len(_SMALL)


def _parameters(name: str) -> float:
    """Number of parameters, counted without allocating them."""
    try:
        with torch.device("meta"), _limited(SECONDS):
            return sum(p.numel() for p in timm.create_model(name).parameters())
    except Exception:  # some constructors compute with values, which the meta device lacks
        return float("inf")


def tried(name: str) -> dict[str, Any]:
    """Whether `build_member` takes the network at the size of its images, else why not."""
    config = timm.get_pretrained_cfg(name)
    shape = tuple(config.input_size) if config else (3, 224, 224)
    task = Task(
        name="two images",
        shape=shape,
        classes=10,
        train_size=2,
        mean=(0.5,) * shape[0],
        std=(0.25,) * shape[0],
    )
    started = time.process_time()
    try:
        with _limited(SECONDS):
            build_member(Backbone(use=name), task)
        reason = ""
    except (ConfigError, TimeoutError) as error:
        told = error.problems if isinstance(error, ConfigError) else [str(error)]
        reason = "; ".join(told).removeprefix(f"backbone.use: {name!r} cannot be a member: ")
        if _LATE in reason:
            reason = _LATE
    seconds = round(time.process_time() - started, 1)
    return {"size": shape[1], "accepted": not reason, "reason": reason, "seconds": seconds}


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError inside after so many seconds of processor time."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(_LATE)

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


if __name__ == "__main__":
    main()
