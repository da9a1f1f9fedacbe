"""Feasible before infeasible, for searchers that know values only."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from optuna.trial import FrozenTrial

from strategies.observation import Observation


def violation(trial: FrozenTrial) -> float:
    """How far a trial is from feasible: the sum of what `trial.set_constraint` has above 0."""
    return float(sum(max(value, 0.0) for value in getattr(trial, "constraints", {}).values()))


def feasible_first(
    history: Sequence[Observation], violations: Mapping[int, float]
) -> list[Observation]:
    """A history in which infeasible observations are worse than all feasible ones.

    The rule of Deb (2000), "An efficient constraint handling method for genetic algorithms": an
    infeasible point has the worst feasible value and its violation on top; so among themselves
    those with the smaller violation are better, whatever their objective. They have no gradient.

    **Arguments:**

    - `history`: observations of trials.
    - `violations`: by number, of those that are infeasible.
    """
    known = {o.number: o.value for o in history if o.number is not None and o.value is not None}
    worst = max((v for n, v in known.items() if n not in violations), default=0.0)
    behind = {n: worst + violations[n] for n in known.keys() & violations.keys()}
    return [
        replace(o, value=behind[o.number], gradient=None)
        if o.number is not None and o.number in behind
        else o
        for o in history
    ]


__all__ = ["feasible_first", "violation"]
