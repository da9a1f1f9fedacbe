"""ASHA: successive halving that never waits.

Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht, Talwalkar (2020), "A system for
massively parallel hyperparameter tuning", MLSys. A worker that is free promotes the best
configuration that is in the top `1/eta` of its rung and has not been promoted yet, highest rung
first, and starts a new configuration if there is none.

The stopping variant, which most tools run under the name of ASHA, decides when a configuration
reaches a rung, once and for all: it goes on if it is in the top `1/eta` of those that have reached
the rung so far. It needs no pausing; it lets more bad configurations through early on.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

from strategies import arguments
from strategies.schedulers.base import Scheduler
from strategies.searchers.base import Searcher

Mode = Literal["promotion", "stopping"]


class ASHA(Scheduler):
    """Asynchronous successive halving, with any searcher inside.

    **Arguments:**

    - `searcher`, `max_resource`, `min_resource`, `eta`, `integer`: see `Scheduler`.
    - `mode`: `"promotion"` (default): a free worker continues the best configuration of the top
      `1/eta` of a rung, highest rung first. `"stopping"`: a configuration that reaches a rung goes
      on at once if it is in the top `1/eta` of those that were there before, and never otherwise;
      nothing is paused.
    - `configurations`: how many configurations to start. Default `None`: as many as are asked for.

    In the stopping mode the first `eta - 1` configurations that reach a rung always go on: there is
    nothing to compare them with. A failed configuration never does.
    """

    def __init__(
        self,
        searcher: Searcher,
        max_resource: int | float | Fraction,
        *,
        min_resource: int | float | Fraction = 1,
        eta: int = 3,
        integer: bool = True,
        mode: Mode = "promotion",
        configurations: int | None = None,
    ) -> None:
        super().__init__(
            searcher, max_resource, min_resource=min_resource, eta=eta, integer=integer
        )
        if not isinstance(mode, str) or mode not in get_args(Mode):
            raise ValueError(f"'mode': expected one of {get_args(Mode)}, received {mode!r:.80}")
        self.mode: Mode = mode
        self.configurations = (
            None
            if configurations is None
            else arguments.integer("configurations", configurations, 1)
        )
        self._stopped: set[int] = set()

    @property
    def finished(self) -> bool:
        """Whether all configurations were started and none may go on."""
        return self._place() is None and not self._pending and not self._promotions()

    def settled(self, number: int) -> bool:
        """See `Scheduler.settled`."""
        return super().settled(number) or number in self._stopped

    def _promotions(self) -> Sequence[tuple[int, int]]:
        if self.mode == "stopping":
            return [
                (n, max(c.results) + 1)
                for n, c in self.candidates.items()
                if c.results
                and n not in self._pending
                and n not in self._stopped
                and max(c.results) < self.top
            ]
        return [
            (n, level + 1)
            for level in reversed(range(self.top))
            for n in self._best_fraction(level)
            if n not in self._pending and max(self.candidates[n].results) == level
        ]

    def _best_fraction(self, level: int) -> list[int]:
        """The top `1/eta` of a rung, failures left out, best first."""
        ranked = self._ranked(self._at(level), level)
        best = ranked[: len(ranked) // self.eta]
        return [n for n in best if math.isfinite(self.candidates[n].value(level))]

    def _place(self) -> tuple[int, int] | None:
        for number in self._unstarted():
            return number, 0
        if self.configurations is not None and len(self.candidates) >= self.configurations:
            return None
        return len(self.candidates), 0

    def _unstarted(self) -> list[int]:
        """Configurations whose first job was lost."""
        return [n for n, c in self.candidates.items() if not c.results and n not in self._pending]

    def _reached(self, number: int, level: int) -> None:
        if self.mode == "promotion":
            return
        reached = self._ranked(self._at(level), level)
        first = len(reached) < self.eta
        if math.isinf(self.candidates[number].value(level)) or not (
            first or number in reached[: len(reached) // self.eta]
        ):
            self._stopped.add(number)

    _extent = "configurations"

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"mode": self.mode, "configurations": self.configurations}

    def _decisions(self) -> dict[str, Any]:
        return {"stopped": sorted(self._stopped)}

    def _set_decisions(self, decisions: Mapping[str, Any]) -> None:
        self._stopped = set(decisions["stopped"])
