"""Hyperparameters without bounds: a centre and a scale."""

from typing import Literal

from strategies.arguments import finite, positive
from strategies.space.domains import Domain
from strategies.space.numeric import Float, Int

#: Scales on each side of the centre. Nobody walks so far, and all numbers on the way are finite.
REACH = 12
# The largest integer of a domain.
_LARGEST = 10**9 - 1


def around(
    centre: float,
    scale: float = 1.0,
    *,
    kind: Literal["log", "linear"] = "log",
    integer: bool = False,
) -> Domain:
    """A number that may become anything: known are a centre and how far a step goes.

    `CARBSSearcher` starts at the centre and walks as far as the values fall. For other searchers it
    is a domain of twelve scales on each side, with a normal prior of one scale around the centre.

    **Arguments:**

    - `centre`: where to start; positive if `kind` is `"log"`.
    - `scale`: one step: in decades, or for `"linear"` in the unit of the number.
    - `kind`: whether the number or its logarithm is searched.
    - `integer`: whether it is a whole number, 1 at least.

    **Raises:** `ValueError` naming the argument that is out of range.
    """
    scale = positive("scale", scale)
    if kind not in ("log", "linear"):
        raise ValueError(f"'kind': expected 'log' or 'linear', received {kind!r}")
    if kind == "log":
        centre = positive("centre", centre)
        # As far as floats go with room for products.
        reach = min(REACH, 100.0 / scale)
        low, high = centre * 10.0 ** (-reach * scale), centre * 10.0 ** (reach * scale)
    else:
        centre = finite("centre", centre)
        low, high = centre - REACH * scale, centre + REACH * scale
    if not integer:
        width = (high - low) if kind == "linear" else 2 * reach * scale
        return Float(low, high, log=kind == "log", default=centre, spread=scale / width)
    first, last = max(round(low), 1), min(round(high), _LARGEST)
    domain = Int(first, last, log=kind == "log", default=round(centre))
    unit = float(domain.encode(round(centre))[0])
    further = round(centre * 10.0**scale) if kind == "log" else round(centre + scale)
    spread = abs(float(domain.encode(min(max(further, first), last))[0]) - unit)
    return Int(first, last, log=kind == "log", default=round(centre), spread=spread or 1.0 / REACH)
