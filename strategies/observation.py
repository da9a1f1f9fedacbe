"""What passes between a searcher and whoever runs the trials."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["complete", "failed", "pruned"]


@dataclass(frozen=True)
class Suggestion:
    """A configuration to try.

    - `number`: position in the search, from 0; with the seed it determines all randomness.
    - `config`: nested dict of plain Python values (lists for array-valued floats).
    - `note`: the searcher's own JSON-safe remark; it comes back with the observation.
    """

    number: int
    config: dict[str, Any]
    note: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """What came of a configuration. Values are minimised; an engine's face flips the sign.

    - `config`: the configuration that was evaluated: the suggested one, or the one that the trial
      tuned it into.
    - `value`: the objective; NaN, infinite or `None` makes the observation `failed`.
    - `gradient`: derivative of `value` with respect to the configuration's natural values, nested
      or flat (`"a/b"`), partial: keys without a derivative are left out.
    - `gradient_error`: estimated relative error of the gradient, if known.
    - `cost`: seconds (or another unit) that the trial took.
    - `resource`: epochs, steps or samples that it was given.
    - `number`: the suggestion's number; `None` for a point that was not suggested.
    - `note`: the suggestion's note.
    """

    config: Mapping[str, Any]
    value: float | None
    gradient: Mapping[str, Any] | None = None
    gradient_error: float | None = None
    cost: float | None = None
    resource: float | None = None
    status: Status = "complete"
    number: int | None = None
    note: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        usable = self.value is not None and math.isfinite(self.value)
        if self.status == "complete" and not usable:
            object.__setattr__(self, "status", "failed")
