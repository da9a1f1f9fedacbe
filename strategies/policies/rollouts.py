"""The cost of a policy: whole runs of the algorithm, on a set of instances."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strategies.arguments import integer, positive, several
from strategies.observation import Report, report
from strategies.policies.base import Choose, Policy

#: `simulate(choose, instance, rng) -> cost` of one run.
Simulate = Callable[[Choose, Any, np.random.Generator], float]


@dataclass(frozen=True)
class Judged:
    """What runs of a policy cost; `costs` has the shape `(instances, runs)`."""

    costs: np.ndarray

    @property
    def mean(self) -> float:
        """Mean cost over all runs of all instances."""
        return float(self.costs.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean, of runs on these instances; NaN for one run each."""
        instances, runs = self.costs.shape
        if runs < 2:
            return math.nan
        return float(np.sqrt(np.sum(self.costs.var(axis=1, ddof=1) / runs)) / instances)

    @property
    def spread(self) -> float:
        """Standard error of the mean, of instances as draws of all; NaN for a single one."""
        count = len(self.costs)
        if count < 2:
            return math.nan
        return float(self.costs.mean(axis=1).std(ddof=1) / math.sqrt(count))


class Rollouts:
    """An objective for any searcher and engine: the mean cost of a policy over instances.

    Every configuration is run with the same random numbers, so that differences between policies
    are seen below the noise of a run. The standard error of the mean is in `info`, and so is the
    cost of each instance.

    **Arguments:**

    - `policy`: the family; search `policy.space`.
    - `simulate`: `simulate(choose, instance, rng) -> cost` of one run; `choose(features)` is asked
      for each action.
    - `instances`: what to run on. Keep some apart for `judge`.
    - `runs`: of each instance, with other random numbers. Default 1.
    - `seed`: of the random numbers. Default 0.
    - `cap`: the cost of a run that costs more, or whose cost is not finite. Default: a cost that is
      not finite fails the trial, and the error names the instance.
    """

    def __init__(
        self,
        policy: Policy,
        simulate: Simulate,
        instances: Sequence[Any],
        *,
        runs: int = 1,
        seed: int = 0,
        cap: float | None = None,
    ) -> None:
        if not isinstance(policy, Policy):
            raise ValueError(f"'policy': expected a Policy, received {policy!r:.80}")
        if not callable(simulate):
            raise ValueError(f"'simulate': expected a function, received {simulate!r:.80}")
        self.policy, self.simulate, self.instances = (
            policy, simulate, list(several("instances", instances, "a sequence"))
        )  # fmt: skip
        if not self.instances:
            raise ValueError("'instances': expected at least one, received none")
        self.runs, self.seed = integer("runs", runs, 1), integer("seed", seed, 0)
        self.cap = None if cap is None else float(positive("cap", cap))

    def __call__(self, config: Mapping[str, Any]) -> Report:
        """The report of one trial."""
        judged = self.judge(config)
        info = {"standard_error": judged.error, "instances": judged.costs.mean(axis=1)}
        return report(judged.mean, info=info)

    def judge(
        self,
        config: Mapping[str, Any],
        instances: Sequence[Any] | None = None,
        *,
        runs: int | None = None,
        seed: int | None = None,
    ) -> Judged:
        """What a policy costs on these or other instances, and with other random numbers.

        **Arguments:**

        - `config`: of `policy.space`.
        - `instances`: default: those of the search. Give others to see how it generalises.
        - `runs`, `seed`: default: those of the search.
        """
        return self.judge_choice(self.policy.at(config), instances, runs=runs, seed=seed)

    def judge_choice(
        self,
        choose: Choose,
        instances: Sequence[Any] | None = None,
        *,
        runs: int | None = None,
        seed: int | None = None,
    ) -> Judged:
        """`judge` for any function of the features: a static action, a rule by hand."""
        given = (
            self.instances if instances is None else several("instances", instances, "a sequence")
        )
        if not callable(choose):
            raise ValueError(f"'choose': expected a function, received {choose!r:.80}")
        if not given:
            raise ValueError("'instances': expected at least one, received none")
        count = self.runs if runs is None else integer("runs", runs, 1)
        root = self.seed if seed is None else integer("seed", seed, 0)
        costs = np.empty((len(given), count))
        for i, instance in enumerate(given):
            for run in range(count):
                rng = np.random.default_rng([root, i, run])
                costs[i, run] = self._cost(self.simulate(choose, instance, rng), i, run)
        return Judged(costs)

    def _cost(self, cost: Any, instance: int, run: int) -> float:
        try:
            number = float(cost)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"instance {instance}, run {run}: expected a cost, received {cost!r:.80}"
            ) from None
        if self.cap is not None:
            return min(number, self.cap) if math.isfinite(number) else self.cap
        if not math.isfinite(number):
            raise ValueError(
                f"instance {instance}, run {run}: expected a finite cost, received {cost!r:.80}"
            )
        return number
