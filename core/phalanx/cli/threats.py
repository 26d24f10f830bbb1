"""``--norm`` and ``--eps``: a threat on the command line; torch-free."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ValidationError

from phalanx.errors import InputError
from phalanx.specs import L1, L2, Linf, Threat


class Norm(StrEnum):
    """Norms of a ball."""

    LINF = "linf"
    L2 = "l2"
    L1 = "l1"


def threat_of(norm: Norm | None, eps: str | None) -> Threat | None:
    """``--norm`` and ``--eps`` as a threat; None where neither is given.

    Raises:
        InputError: if only one is given, or eps is no radius of that norm.
    """
    if norm is None and eps is None:
        return None
    if eps is None:
        raise InputError(f"--norm {norm} needs --eps, such as --norm {norm} --eps 8/255")
    if norm is None:
        raise InputError(f"--eps {eps} needs --norm linf, l2 or l1")
    kinds: dict[Norm, type[Linf | L2 | L1]] = {Norm.LINF: Linf, Norm.L2: L2, Norm.L1: L1}
    try:
        return kinds[norm](eps)
    except ValidationError:
        between = "between 0 and 1" if norm is Norm.LINF else "above 0"
        hint = f"; did you mean {eps}/255?" if eps.isdigit() and 1 < int(eps) <= 255 else ""
        raise InputError(
            f"--eps {eps}: a radius in {norm} is in pixel units of [0, 1], so it must be a number "
            f"{between}{hint}"
        ) from None
