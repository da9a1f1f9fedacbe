"""Hyperparameters without bounds: a centre and a scale."""

import math
from dataclasses import replace
from typing import Literal

from scipy.special import expit, logit

from strategies.arguments import finite, one_of, positive, switch
from strategies.space.domains import Domain
from strategies.space.logit import Logit
from strategies.space.numeric import Float, Int

#: Scales on each side of the centre. Nobody walks so far, and all numbers on the way are finite.
REACH = 12
# As far as odds go, in decades: 1 - 1e-14 has two digits of its distance to 1 left.
_ODDS = 14.0
# The largest integer of a domain.
_LARGEST = 10**9 - 1


def around(
    centre: float,
    scale: float = 1.0,
    *,
    kind: Literal["log", "linear", "logit"] = "log",
    integer: bool = False,
) -> Domain:
    """A number that may become anything: known are a centre and how far a step goes.

    `CARBSSearcher` starts at the centre and walks as far as the values fall. For other searchers it
    is a domain of twelve scales on each side, with a normal prior of one scale around the centre.

    **Arguments:**

    - `centre`: where to start; positive if `kind` is `"log"`, between 0 and 1 for `"logit"`.
    - `scale`: one step: in decades (for `"logit"` of the odds `x / (1 − x)`), or for `"linear"` in
      the unit of the number.
    - `kind`: whether the number, its logarithm or its logit is searched.
    - `integer`: whether it is a whole number, 1 at least; no logit is.

    **Raises:** `ValueError` naming the argument that is out of range.
    """
    scale = positive("scale", scale)
    one_of("kind", kind, ("log", "linear", "logit"))
    integer = switch("integer", integer)
    if kind == "logit":
        return _odds(centre, scale, integer)
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


def _odds(centre: float, scale: float, integer: bool) -> Logit:
    centre = positive("centre", centre)
    if not centre < 1.0:
        raise ValueError(f"'centre': expected a number between 0 and 1, received {centre!r}")
    if integer:
        raise ValueError("'integer': expected False with kind='logit', received True")
    middle, step = float(logit(centre)), scale * math.log(10.0)
    most = _ODDS * math.log(10.0)
    if not abs(middle) < most:
        raise ValueError(
            f"'centre': expected a number further than 1e-{_ODDS:g} from 0 and 1, received "
            f"{centre!r}"
        )
    low, high = max(middle - REACH * step, -most), min(middle + REACH * step, most)
    domain = Logit(float(expit(low)), float(expit(high)), default=centre)
    low, high = domain.ends
    return replace(domain, spread=step / (high - low))
