"""Do intermediate losses rank configurations as final ones do?"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from strategies.schedulers.base import Scheduler

#: From this share on decisions are unsafe: a third of them were the wrong way.
UNSAFE = 1 / 3
#: Standard errors by which rungs have to be worse than a guess before a scheduler warns.
SURE = 2.5
#: Pairs below which a share says nothing: that of five configurations.
ENOUGH = 10


class RankFlipWarning(UserWarning):
    """Decisions by intermediate losses are unsafe here."""


@dataclass(frozen=True)
class RankFlips:
    """The share of pairs whose order at a resource is not that at the end.

    - `shares`: by resource, those below the last; NaN where no pair is known at both.
    - `pairs`: by resource, how many pairs were compared.
    """

    shares: dict[float, float]
    pairs: dict[float, int]

    @property
    def worst(self) -> float:
        """The largest share among resources with enough pairs (ten); NaN if none has."""
        known = [share for at, share in self.shares.items() if self.pairs[at] >= ENOUGH]
        return max(known, default=math.nan)

    @property
    def inverted(self) -> float | None:
        """The first resource at which the order is surely worse than a guess, if there is one.

        For configurations that were promoted for their order: that it says little among them is
        what promotion leaves. By 2.5 standard errors of Kendall's coefficient under a guess.
        """
        for at, share in self.shares.items():
            count = 0.5 * (1.0 + math.sqrt(1.0 + 8.0 * self.pairs[at]))
            if self.pairs[at] < ENOUGH:
                continue
            spread = 0.5 * math.sqrt(2.0 * (2.0 * count + 5.0) / (9.0 * count * (count - 1.0)))
            if share > 0.5 + SURE * spread:
                return at
        return None

    @property
    def unsafe(self) -> bool:
        """Whether a third of the pairs or more change their order after some resource."""
        return self.worst >= UNSAFE


def rank_flips(curves: "Scheduler | Mapping[Any, Mapping[float, float]] | Any") -> RankFlips:
    """By resource, the share of pairs of configurations whose order changes until the end.

    A half is what guessing gives. A learning rate that falls to zero over the training makes
    intermediate losses misleading: large rates look bad until it has fallen. Where shares are high,
    train fewer configurations to the end, or give each job its own shortened schedule.

    Pairs that are equal at the end say nothing and are left out; equal before counts as half.

    **Arguments:**

    - `curves`: losses by configuration and resource, `{name: {epoch: loss}}`; or an array of shape
      `(configurations, resources)`; or a scheduler. Of a scheduler those alone are known that were
      promoted to its last rung: they are more alike than all, which makes flips more frequent;
      look at `inverted`, not at `unsafe`.

    **Raises:** `ValueError` for fewer than two resources.
    """
    table = _table(curves)
    at_all = getattr(curves, "resources", None) or {at for row in table for at in row}
    resources = sorted(float(at) for at in at_all)
    if len(resources) < 2:
        raise ValueError(f"'curves': expected at least two resources, received {resources!r:.80}")
    last = resources[-1]
    ended = [row for row in table if last in row]
    shares, pairs = {}, {}
    for at in resources[:-1]:
        known = [row for row in ended if at in row]
        here, end = (np.array([row[when] for row in known]) for when in (at, last))
        flipped, pairs[at] = _flips(here, end)
        shares[at] = flipped / pairs[at] if pairs[at] else math.nan
    return RankFlips(shares, pairs)


def _flips(here: np.ndarray, end: np.ndarray) -> tuple[float, int]:
    """How many pairs have another order at the end, and how many have one, `(n,)` losses each.

    Row by row: all pairs at once take memory that grows as the square of the configurations.
    """
    flipped, pairs = 0.0, 0
    for i in range(1, len(end)):
        at_end, before = np.sign(end[i] - end[:i]), np.sign(here[i] - here[:i])
        told = at_end != 0
        # Equal before is half a flip: signs are 1 apart then, and 2 apart for the other order.
        flipped += 0.5 * float(np.abs(at_end - before)[told].sum())
        pairs += int(told.sum())
    return flipped, pairs


def warn_if_unsafe(scheduler: "Scheduler") -> bool:
    """Say so, if the finished configurations of a scheduler show it; whether it was said."""
    if scheduler.top < 1:
        return False
    found = rank_flips(scheduler)
    at = found.inverted
    if at is None:
        return False
    warnings.warn(
        f"Of the configurations trained to the end, {found.shares[at]:.0%} of the pairs had the "
        f"other order at resource {at:g}: decisions there are unsafe. Let schedules of the "
        "learning rate end at each job's own resource, or start with a larger 'min_resource'.",
        RankFlipWarning,
        stacklevel=3,
    )
    return True


def _table(curves: Any) -> list[dict[float, float]]:
    """Finite losses by resource, one dict for each configuration."""
    if hasattr(curves, "candidates") and hasattr(curves, "resources"):
        of = curves.resources
        candidates = curves.candidates.values()
        return [_finite({of[i]: c.value(i) for i in c.results}) for c in candidates]
    if isinstance(curves, Mapping):
        return [_row(name, row) for name, row in curves.items()]
    if isinstance(curves, Sequence | np.ndarray) and not isinstance(curves, str | bytes):
        return [_row(str(i), dict(enumerate(_line(row), 1))) for i, row in enumerate(curves)]
    raise ValueError(
        "'curves': expected losses by configuration and resource, an array of two axes, or a "
        f"scheduler, received {curves!r:.80}"
    )


def _line(row: Any) -> list[Any]:
    if isinstance(row, str | bytes) or not hasattr(row, "__iter__"):
        raise ValueError(f"'curves': expected two axes, received a row {row!r:.80}")
    return list(row)


def _row(name: Any, row: Any) -> dict[float, float]:
    if not isinstance(row, Mapping):
        raise ValueError(f"'curves': {name!r}: expected losses by resource, received {row!r:.80}")
    for at, value in row.items():
        for number in (at, value):
            if isinstance(number, bool) or not isinstance(number, Real):
                raise ValueError(f"'curves': {name!r}: expected numbers, received {number!r:.80}")
    return _finite(row)


def _finite(row: Mapping[Any, Any]) -> dict[float, float]:
    # A failure is no loss that could be compared.
    return {float(at): float(value) for at, value in row.items() if math.isfinite(value)}
