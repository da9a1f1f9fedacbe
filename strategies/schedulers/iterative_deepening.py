"""Iterative Deepening Hyperband: let the maximum resource grow, and keep what was evaluated.

Brandt, Wever, Bengs, Hüllermeier (2023), "Iterative Deepening Hyperband". When a run at maximum
resource `R` has turned out too short, it is continued at `eta * R`: every bracket keeps its lowest
rung, gets one more rung at the top and the configurations that it lacks, and successive halving is
run again over all of it, with the values that exist.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

from strategies.arguments import positive
from strategies.schedulers.hyperband import Bracket, Hyperband
from strategies.schedulers.job import is_power
from strategies.searchers.base import Searcher

Variant = Literal["discarding", "preserving", "efficient"]


class IterativeDeepeningHyperband(Hyperband):
    """Hyperband whose maximum resource can be raised by `deepen`, in the three published variants.

    **Arguments:**

    - `searcher`, `max_resource`, `min_resource`, `eta`, `integer`, `iterations`: see `Hyperband`.
    - `variant`: who is promoted from a rung after deepening.
        - `"discarding"` (DID-HB): the best of the rung's members, as if run from scratch. The
          result equals that of Hyperband at the new maximum exactly; a configuration that was
          promoted before may now be dropped, and what it has cost is lost.
        - `"preserving"` (PID-HB): the best of the members together with all of the bracket that
          have a value at this rung from before: a configuration dropped then may return.
        - `"efficient"` (EID-HB, default): configurations that were trained beyond this rung
          before go on without competition, and the best of the rest fill the remaining places. No
          evaluation is wasted: the total cost equals that of Hyperband at the new maximum.
    """

    _grows = True

    def __init__(
        self,
        searcher: Searcher,
        max_resource: int | float | Fraction,
        *,
        min_resource: int | float | Fraction = 1,
        eta: int = 3,
        integer: bool = True,
        iterations: int | None = 1,
        variant: Variant = "efficient",
    ) -> None:
        super().__init__(
            searcher,
            max_resource,
            min_resource=min_resource,
            eta=eta,
            integer=integer,
            iterations=iterations,
        )
        if not isinstance(variant, str) or variant not in get_args(Variant):
            raise ValueError(
                f"'variant': expected one of {get_args(Variant)}, received {variant!r:.80}"
            )
        self.variant: Variant = variant

    def deepen(self, max_resource: int | float | Fraction | None = None) -> None:
        """Raise the maximum resource, and keep all results.

        Jobs that are pending stay valid: a rung keeps its resource when the maximum grows.

        **Arguments:**

        - `max_resource`: the new maximum: the present one times a power of `eta`. Nothing happens
          if it is the present one, so that a script that is run again does no harm. Default: `eta`
          times the present one.

        **Raises:** `ValueError` for any other maximum.
        """
        target = self._high * self.eta
        if max_resource is not None:
            target = Fraction(str(positive("max_resource", max_resource)))
        if not is_power(target / self._high, self.eta):
            raise ValueError(
                f"'max_resource': expected {self.max_resource} times a power of {self.eta}, "
                f"received {max_resource}"
            )
        self._high = target

    def settled(self, number: int) -> bool:
        """Never: whoever is at the top now will not be when the maximum has grown."""
        return False

    def _promoted(
        self, bracket: Bracket, level: int, members: Sequence[int], places: int
    ) -> Sequence[int]:
        if self.variant == "discarding":
            return self._finite(members, level)[:places]
        if self.variant == "preserving":
            known = [n for n in bracket.numbers if n in self.candidates]
            return self._finite(known, level)[:places]
        beyond = [n for n in members if max(self.candidates[n].results) > level]
        rest = [n for n in self._finite(members, level) if n not in beyond]
        return beyond + rest[: max(places - len(beyond), 0)]

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"variant": self.variant}
