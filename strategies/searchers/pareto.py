"""Cost-aware search for the whole front between performance and cost.

Two Gaussian processes, on the logarithm of the objective (above a little less than its best value)
and on that of the cost, and the expected improvement of the hypervolume that is dominated in
objective and log cost (Emmerich et al. 2011), maximised around the members of the Pareto front
found so far and over the whole space. In the spirit of CARBS (Fetterman et al. 2023):
cheap trials pay for expensive ones, and the front tells for every hyperparameter how its best value
scales with the cost. Unlike CARBS the acquisition needs neither a search radius nor a drawn cost.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.arguments import instance, integer
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.space import Float, Int, SearchSpace
from strategies.surrogates.candidates import maximise
from strategies.surrogates.gaussian_process import Prior, Rows, fit
from strategies.surrogates.geometry import geometry
from strategies.surrogates.hypervolume import improvement, pareto_front
from strategies.surrogates.outputs import shifted, standardised
from strategies.surrogates.startup import sobol_point

Matrix = NDArray[np.float64]

# Values are of interest up to so many times the distance of the median from the best.
_TAIL = 5.0


@dataclass(frozen=True)
class ScalingLaw:
    """`value ∝ cost ** exponent` of one hyperparameter along the front.

    - `exponent`, `factor`: of the fit `log value = log factor + exponent log cost` (log domains);
      for linear domains `value = factor + exponent log cost`.
    - `error`: standard error of the exponent.
    """

    exponent: float
    factor: float
    error: float


class ParetoSearcher(Searcher):
    """Searches for all trade-offs between the value and the cost that trials report.

    Observations must carry a positive `cost`; one without is an error that names its number.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher.
    - `startup`: points of a scrambled Sobol sequence before the first model.
    - `prior`: on the hyperparameters of both processes.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
        startup: int = 5,
        prior: Prior | None = None,
    ):
        super().__init__(space, seed=seed, first=first)
        self.startup = integer("startup", startup, 2)
        self.prior = Prior() if prior is None else instance("prior", prior, Prior)
        self._groups, self._stretch = geometry(self.space)

    def check(self, observation: Observation) -> None:
        """The cost must be positive and finite.

        **Raises:** `ValueError` naming the trial whose cost is not.
        """
        super().check(observation)
        if not 0 < (observation.cost or 0) < math.inf:
            raise ValueError(
                f"trial {observation.number}: 'cost': expected a positive number, "
                f"received {observation.cost!r}"
            )

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        known = [o for o in history if o.status != "failed" and o.value is not None and o.cost]
        if len(known) < self.startup:
            config = self.space.from_uniform(sobol_point(self.space.uniforms, self.seed, number))
            return Suggestion(number, config, {"origin": "startup"})
        rng = self.rng(number)
        units = np.stack([o.unit for o in known])
        x = units * self._stretch
        # The value's logarithm is what a process can model, areas are in its own units: a tenth of
        # the best error is not worth as much as a tenth of the worst.
        # Diverged trainings would take all of its range, and are bad enough at the cap.
        values = np.array([o.value for o in known], float)
        middle = float(np.median(values))
        cap = middle + _TAIL * (middle - values.min())
        logs = np.log(shifted(np.minimum(values, cap) if cap > middle else values))
        centre, spread = float(logs.mean()), max(float(logs.std()), 1e-12)
        cost, _ = standardised(np.log([float(o.cost or 1) for o in known]))
        targets = np.stack([(logs - centre) / spread, cost], axis=1)
        rows = Rows.values(x)
        processes = [fit(rows, y, self._groups, prior=self.prior) for y in targets.T]
        # The front of the posterior means: one lucky noisy value does not hide a trade-off.
        means = np.stack([process.predict(x)[0] for process in processes], axis=1)
        tried = units
        if pending:
            waiting = np.stack([item.unit for item in pending])
            rows = rows.join(Rows.values(waiting * self._stretch))
            guesses = [p.predict(waiting * self._stretch)[0] for p in processes]
            processes = [
                process.condition(rows, np.r_[y, guess])
                for process, y, guess in zip(processes, targets.T, guesses, strict=True)
            ]
            means = np.r_[means, np.stack(guesses, axis=1)]
            tried = np.r_[units, waiting]
        points = np.stack([np.exp(centre + spread * means[:, 0]), means[:, 1]], axis=1)
        worst = points.max(axis=0)
        reference = worst + 0.1 * (worst - points.min(axis=0))
        gain = improvement(points, reference, logs=(True, False))

        def score(candidates: Matrix) -> NDArray[np.float64]:
            (value, value_error), (cost, cost_error) = (
                process.predict(candidates * self._stretch) for process in processes
            )
            mean = np.stack([centre + spread * value, cost], axis=1)
            deviation = np.stack([spread * value_error, cost_error], axis=1)
            return np.log(np.maximum(gain(mean, deviation), 1e-300))

        front = {tuple(row) for row in pareto_front(points)}
        members = np.flatnonzero([tuple(row) in front for row in points])
        anchors = tried[rng.permutation(members)[:8]]
        point = maximise(self.space, score, anchors, tried, rng)
        config = self.space.sample(rng) if point is None else self.space.decode(point)
        return Suggestion(number, config, {"origin": "model"})

    def front(self, history: Iterable[Observation] | None = None) -> list[Observation]:
        """The observations that no other one beats in both value and cost, cheapest first.

        **Arguments:**

        - `history`: of a `Ledger` or an engine. Default: that of `self.ledger`.
        """
        found: list[Observation] = []
        told = self.ledger.history if history is None else history
        known = [o for o in told if o.status == "complete" and o.feasible and o.cost]
        for item in sorted(known, key=lambda o: (o.cost, o.value)):
            if not found or item.value < found[-1].value:  # type: ignore[operator]
                found.append(item)
        return found

    def scaling_laws(self, history: Iterable[Observation] | None = None) -> dict[str, ScalingLaw]:
        """How each scalar numeric hyperparameter of the front's members follows the cost.

        **Arguments:**

        - `history`: as for `front`.

        **Returns:** A law for each path; empty if the front has fewer than three members.
        """
        front = self.front(history)
        if len(front) < 3:
            return {}
        logs = np.log([float(item.cost or 0) for item in front])
        design = np.stack([np.ones_like(logs), logs], axis=1)
        laws = {}
        for path, domain in self.space.domains.items():
            if not isinstance(domain, Float | Int) or domain.size != 1:
                continue
            flat = [self.space.flatten(item.config).get(path) for item in front]
            if any(value is None for value in flat):
                continue
            values = np.array(flat, float).ravel()
            target = np.log(values) if domain.log else values
            (offset, slope), *_ = np.linalg.lstsq(design, target)
            left = target - design @ np.array([offset, slope])
            spread = float(np.sum((logs - logs.mean()) ** 2))
            variance = float(left @ left) / max(len(front) - 2, 1) / max(spread, 1e-300)
            factor = float(np.exp(offset)) if domain.log else float(offset)
            laws[path] = ScalingLaw(float(slope), factor, float(np.sqrt(variance)))
        return laws
