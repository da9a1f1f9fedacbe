"""Population-based training: the good members are copied over the bad ones, and varied.

Jaderberg, Dalibard, Osindero, Czarnecki, Donahue, Razavi, Vinyals, Green, Dunning, Simonyan,
Fernando, Kavukcuoglu (2017), "Population based training of neural networks".
"""

import math
from dataclasses import dataclass, field

import numpy as np

from strategies.arguments import finite, integer
from strategies.observation import Observation
from strategies.population.explore import Explore, Perturb, Round
from strategies.searchers.base import Searcher, require_searcher
from strategies.space import Config


@dataclass(frozen=True)
class PBT:
    """Population-based training: after each interval, exploit and explore.

    All members train for `interval` steps and are evaluated. Those in the worst share `truncation`
    take over state and configuration of a member drawn from the best share (truncation selection;
    a failed member always does). Then `explore` changes configurations.

    **Arguments:**

    - `searcher`: proposes the first configuration of each member.
    - `steps`: training steps of each member, a multiple of `interval`.
    - `interval`: steps between two rounds of exploiting and exploring.
    - `truncation`: share of the population that is replaced, in (0, 0.5]. Default 0.2.
    - `explore`: what changes the configurations: `Perturb` (default), `Resample`, `PB2`, or
      `FollowGradient`.

    Every result is an observation numbered `round * size + member`, with `member`, `round` and
    `parent` in its note, `parent` the member of the round before whose state it went on from (-1: a
    new one). Decisions are functions of the seed of the searcher and of these observations.
    """

    searcher: Searcher
    steps: int
    interval: int
    truncation: float = 0.2
    explore: Explore = field(default_factory=Perturb)

    def __post_init__(self) -> None:
        require_searcher(self.searcher)
        interval = integer("interval", self.interval, 1)
        if integer("steps", self.steps, 1) % interval:
            raise ValueError(
                f"'steps': expected a multiple of interval={interval}, received {self.steps}"
            )
        if not 0 < finite("truncation", self.truncation, "a share in (0, 0.5]") <= 0.5:
            raise ValueError(
                f"'truncation': expected a share in (0, 0.5], received {self.truncation}"
            )
        if not isinstance(self.explore, Explore):
            raise ValueError(f"'explore': expected an Explore, received {self.explore!r:.80}")

    @property
    def rounds(self) -> int:
        """How many intervals there are."""
        return self.steps // self.interval

    def plan(self, number: int, history: list[list[Observation]]) -> tuple[list[int], list[Config]]:
        """Whom each member goes on from in a round, and with which configuration.

        **Arguments:**

        - `number`: of the round, at least 1.
        - `history`: the observations of the rounds before, by round and member.
        """
        rng = np.random.default_rng([self.searcher.seed, number, 3])
        last = history[-1]
        parents = exploit([o.value for o in last], self.truncation, rng)
        space = self.searcher.space
        configs = self.explore(Round(space, number, self.rounds, rng, parents, history))
        return parents, [
            space.sample(rng) if parent < 0
            else config if space.feasible(config)
            else dict(last[parent].config)
            for parent, config in zip(parents, configs, strict=True)
        ]  # fmt: skip


def exploit(values: list[float | None], truncation: float, rng: np.random.Generator) -> list[int]:
    """For each member the one that it goes on from: itself, a good one, or -1 if all have failed.

    **Arguments:**

    - `values`: minimised; `None` for failures.
    - `truncation`: share of the worst, each of which goes on from one of as many best.
    - `rng`: draws among the best.
    """
    keys = [math.inf if value is None else value for value in values]
    ranked = sorted(range(len(keys)), key=lambda i: (keys[i], i))
    good = [i for i in ranked if math.isfinite(keys[i])]
    if not good:
        return [-1] * len(keys)
    share = max(int(len(keys) * truncation), 1)
    best = good[:share]
    replaced = [i for i in ranked[-share:] if i not in best] + [
        i for i in ranked[:-share] if not math.isfinite(keys[i])
    ]
    parents = list(range(len(keys)))
    for i in sorted(replaced):
        parents[i] = int(rng.choice(best))
    return parents
