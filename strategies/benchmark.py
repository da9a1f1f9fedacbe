"""Comparing algorithms by the time in which each reaches a target, over several workloads."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from strategies.arguments import finite

#: AlgoPerf's: who needs more than four times the fastest's time has not made it.
_MOST = 4.0
_ABOVE = "a finite number above 1"


@dataclass(frozen=True)
class Profile:
    """How often each algorithm is how near to the fastest.

    - `workloads`: their names.
    - `ratios`: by algorithm, its time over the fastest's on each workload, shape `(workloads,)`;
      infinite where it did not reach the target.
    - `most`: the largest factor that counts.
    """

    workloads: tuple[str, ...]
    ratios: dict[str, np.ndarray]
    most: float = _MOST

    def share(self, name: str, factor: float) -> float:
        """The share of workloads on which an algorithm needs at most `factor` times the fastest."""
        return float(np.mean(self._of(name) <= factor))

    @property
    def scores(self) -> dict[str, float]:
        """Of each algorithm `1/(most − 1) ∫ share(factor) d factor` from 1 to `most`, in [0, 1].

        1 is the fastest on every workload, 0 reaches no target in `most` times the fastest's time.
        """
        found = {}
        for name, ratios in self.ratios.items():
            gained = np.clip((self.most - ratios) / (self.most - 1.0), 0.0, 1.0)
            found[name] = float(gained.mean())
        return found

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Factors from 1 to `most` and the shares there: corners of a staircase."""
        ratios = np.sort(self._of(name))
        factors = np.unique(np.concatenate([[1.0], ratios[ratios <= self.most], [self.most]]))
        shares = np.searchsorted(ratios, factors, side="right") / len(ratios)
        return factors, shares

    def plot(self) -> Any:
        """A matplotlib figure: share of workloads against the factor, one staircase each."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        scores = self.scores
        for name in sorted(scores, key=lambda name: -scores[name]):
            axes.step(*self.curve(name), where="post", label=f"{name}, {scores[name]:.2f}")
        axes.set(xlabel="time / fastest", ylabel="share of workloads", ylim=(-0.02, 1.02))
        axes.legend(fontsize="small", title="score")
        return figure

    def _of(self, name: str) -> np.ndarray:
        if name not in self.ratios:
            raise ValueError(f"'name': expected one of {', '.join(self.ratios)}, received {name!r}")
        return self.ratios[name]


def profile(
    times: Mapping[str, Mapping[str, float]],
    *,
    reference: Mapping[str, float] | None = None,
    most: float = _MOST,
) -> Profile:
    """Time-to-target profiles, as AlgoPerf scores training algorithms.

    Dahl et al., "Benchmarking Neural Network Training Algorithms" (2023), section 4.5. Count time
    in steps if seconds are not alike. Scores depend on who takes part: the fastest on a workload
    sets its unit.

    **Arguments:**

    - `times`: by algorithm and workload, the time in which the target was reached; infinite where
      it was not. All algorithms have the same workloads.
    - `reference`: times by workload that count as one more algorithm's, but get no score: with it
      scores of separate comparisons can be set side by side.
    - `most`: the largest factor that counts, above 1.

    **Raises:** `ValueError` for workloads that differ, and for times that are not positive.
    """
    if not isinstance(times, Mapping) or not times:
        raise ValueError(
            f"'times': expected times by algorithm and workload, received {times!r:.80}"
        )
    if finite("most", most, _ABOVE) <= 1.0:
        raise ValueError(f"'most': expected {_ABOVE}, received {most!r:.80}")
    first = next(iter(times.values()))
    if not isinstance(first, Mapping) or not first:
        raise ValueError(f"'times': expected times by workload, received {first!r:.80}")
    workloads = tuple(first)
    rows = {name: _row(name, row, workloads) for name, row in times.items()}
    taking_part = list(rows.values())
    if reference is not None:
        taking_part.append(_row("reference", reference, workloads))
    fastest = np.min(taking_part, axis=0)
    with np.errstate(invalid="ignore"):
        ratios = {
            name: np.where(np.isinf(row), np.inf, row / fastest) for name, row in rows.items()
        }
    return Profile(workloads, ratios, float(most))


def _row(name: str, row: Any, workloads: tuple[str, ...]) -> np.ndarray:
    if not isinstance(row, Mapping) or set(row) != set(workloads):
        given = sorted(row) if isinstance(row, Mapping) else row
        raise ValueError(
            f"{name!r}: expected times of {', '.join(map(str, workloads))}, received {given!r:.120}"
        )
    for workload in workloads:
        time = row[workload]
        if isinstance(time, bool) or not isinstance(time, Real) or not float(time) > 0:
            raise ValueError(
                f"{name!r}, {workload!r}: expected a positive time, infinite if the target was not "
                f"reached, received {time!r:.80}"
            )
    return np.array([float(row[workload]) for workload in workloads])


__all__ = ["Profile", "profile"]
