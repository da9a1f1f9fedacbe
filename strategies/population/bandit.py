"""PB2: population-based training whose exploration is a time-varying Gaussian-process bandit.

Parker-Holder, Nguyen, Roberts (2020), "Provably efficient online hyperparameter optimization with
population-based bandits".
"""

from dataclasses import dataclass, field

import numpy as np

from strategies.arguments import integer
from strategies.observation import Observation
from strategies.population.explore import Explore, Perturb, Round
from strategies.space import Config, Float, Int, Logit
from strategies.surrogates.gaussian_process import Rows, fit
from strategies.surrogates.outputs import standardised

#: Observations that the process is fitted to: the last ones, as older ones say little.
_ROWS = 200
#: Points among which the confidence bound is minimised.
_CANDIDATES = 1000
#: Of the confidence bound, beta = 0.2 log(0.4 t) in the published experiments, at least this.
_BETA = 0.2


@dataclass(frozen=True)
class PB2(Explore):
    """Choose the hyperparameters of copied members by a Gaussian-process bandit.

    The process models what a round changed in the value, as a function of the time, the value
    before, and the numeric hyperparameters. A copied member takes the minimum of the lower
    confidence bound; the ones that are chosen in the same round are taken into account with their
    mean. Time is a coordinate with a length scale of its own, fitted with the others, in place of
    the paper's factor `(1 - epsilon)^(|t - t'| / 2)`: both let old observations fade.

    Categorical hyperparameters, and all while there are too few observations, are perturbed.

    **Arguments:**

    - `start`: observations of changes to have before the process is used. Default 8.
    - `others`: changes what the bandit does not. Default `Perturb()`.
    """

    start: int = 8
    others: Perturb = field(default_factory=Perturb)

    def __post_init__(self) -> None:
        integer("start", self.start, 2)

    def __call__(self, round: Round) -> list[Config]:
        """See `Explore`."""
        space = round.space
        numeric = [
            path for path, domain in space.domains.items()
            if isinstance(domain, Float | Int | Logit) and not domain.when
        ]  # fmt: skip
        known = changes(round)
        if len(known) < self.start or not numeric:
            return self.others(round)
        columns = np.concatenate([np.arange(space.dimension)[space.slices[p]] for p in numeric])
        rest = [path for path in space.domains if path not in numeric]
        recent = known[-_ROWS:]
        before = np.array([value for _, value, _ in recent])
        places = np.array([item.unit[columns] for item, _, _ in recent])
        times = np.array([item.note["round"] / round.rounds for item, _, _ in recent])
        middle, width = float(before.mean()), max(float(before.std()), 1e-12)
        x = np.c_[places, times, (before - middle) / width]
        y, _ = standardised(np.array([change for *_, change in recent]))
        process = fit(Rows.values(x), y, np.arange(x.shape[1]))
        root = np.sqrt(max(_BETA * np.log(0.4 * max(round.number, 1)), _BETA))
        configs = round.inherited()
        for i in round.copies:
            parent = round.history[-1][round.parents[i]]
            draws = round.rng.random((_CANDIDATES, len(columns)))
            context = [round.number / round.rounds, ((parent.value or 0.0) - middle) / width]
            points = np.c_[draws, np.broadcast_to(context, (_CANDIDATES, 2))]
            mean, deviation = process.predict(points)
            best = int(np.argmin(mean - root * deviation))
            # As if it had been observed with its mean, so that the next one goes elsewhere.
            x, y = np.r_[x, points[best : best + 1]], np.r_[y, mean[best]]
            process = process.condition(Rows.values(x), y)
            unit = space.point(configs[i]).unit.copy()
            unit[columns] = draws[best]
            configs[i] = self.others.changed(space, space.decode(unit), round.rng, rest)
        return configs


def changes(round: Round) -> list[tuple[Observation, float, float]]:
    """Observations with the value before their round, and by how much it changed."""
    found = []
    for last, items in zip(round.history, round.history[1:], strict=False):
        for item in items:
            parent = item.note["parent"]
            before = None if parent < 0 else last[parent].value
            if before is not None and item.value is not None:
                found.append((item, before, item.value - before))
    return found
