"""What a scheduler hands out and keeps: jobs, candidates and their resources."""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from strategies.observation import Observation


@dataclass(frozen=True)
class Job:
    """Train one configuration up to a resource, then report.

    - `number`: the configuration's number; `Scheduler.tell` refers to it.
    - `config`: nested dict of plain Python values.
    - `resource`: how far to train, in total (not in addition to what was done before).
    - `resume_from`: how far it has been trained already; 0 for a new configuration. Whoever keeps
      checkpoints trains only the difference.
    - `level`: the rung, as an index into `Scheduler.resources`.
    """

    number: int
    config: dict[str, Any]
    resource: int | float
    resume_from: int | float
    level: int


@dataclass
class Candidate:
    """One configuration and all that is known of it, by level."""

    number: int
    config: dict[str, Any]
    note: Mapping[str, Any] = field(default_factory=dict)
    results: dict[int, Observation] = field(default_factory=dict)

    def value(self, level: int) -> float:
        """The value at a level: infinite if it failed there, or was never trained so far."""
        result = self.results.get(level)
        if result is None or result.value is None or result.status == "failed":
            return math.inf
        return result.value


@functools.cache
def rung_resources(
    low: Fraction, high: Fraction, eta: int, integer: bool
) -> tuple[int | float, ...]:
    """The resources `high / eta^i` that are at least `low`, lowest first."""
    exact = [high]
    while exact[0] / eta >= low:
        exact.insert(0, exact[0] / eta)
    if integer:
        return tuple(math.floor(r + Fraction(1, 2)) for r in exact)
    return tuple(plain(r) for r in exact)


def plain(resource: Fraction) -> int | float:
    """An integer where it is one."""
    return resource.numerator if resource.denominator == 1 else float(resource)


def is_power(ratio: Fraction, base: int) -> bool:
    """Whether a ratio is a power of the base, 1 included."""
    while ratio > 1:
        ratio /= base
    return ratio == 1


def resource_from_text(text: str) -> Fraction:
    """A stored resource; not one whose digits would take for ever to compute with."""
    if not re.fullmatch(r"\d{1,30}(/\d{1,30})?", text) or not Fraction(text):
        raise ValueError(f"expected a resource, received {text!r:.40}")
    return Fraction(text)
