"""How population-based training changes configurations: at random, anew, or by the gradient."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from strategies.arguments import finite, integer, positive
from strategies.observation import Observation
from strategies.space import (
    Categorical,
    Config,
    Constant,
    Domain,
    Float,
    Int,
    Logit,
    Ordinal,
    SearchSpace,
)


@dataclass(frozen=True)
class Round:
    """What an exploration may look at.

    - `space`: of the configurations.
    - `number`, `rounds`: of this round, and how many there are.
    - `rng`: its randomness.
    - `parents`: for each member the one that it goes on from, -1 for none.
    - `history`: the observations of the rounds before, by round and member.
    """

    space: SearchSpace
    number: int
    rounds: int
    rng: np.random.Generator
    parents: Sequence[int]
    history: Sequence[Sequence[Observation]]

    @property
    def copies(self) -> list[int]:
        """The members that go on from another one."""
        return [i for i, parent in enumerate(self.parents) if parent not in (i, -1)]

    def inherited(self) -> list[Config]:
        """Each member's configuration before it is changed: that of its parent."""
        last = self.history[-1]
        return [dict(last[max(parent, 0)].config) for parent in self.parents]


class Explore(abc.ABC):
    """Changes configurations between two rounds: a function of a `Round`."""

    #: Steps of the look ahead whose end is differentiated; 0 if no gradient is wanted.
    horizon: int = 0

    @abc.abstractmethod
    def __call__(self, round: Round) -> list[Config]:
        """The configuration of each member in this round."""


@dataclass(frozen=True)
class Perturb(Explore):
    """Multiply each hyperparameter of a copied member by one of two factors.

    Of a `Logit` the odds are multiplied. A float on a linear scale that may be zero or negative
    moves by the same share of its range, as shares and ordered arrays do in unit coordinates; an
    integer by at least one, an ordinal to a neighbour; a categorical stays. Some are drawn anew.

    **Arguments:**

    - `factors`: of a number. Default (0.8, 1.2), those of Jaderberg et al.
    - `resample`: probability that a hyperparameter is drawn from its prior instead. Default 0.25,
      that of Ray Tune; the paper has 0.
    """

    factors: tuple[float, float] = (0.8, 1.2)
    resample: float = 0.25

    def __post_init__(self) -> None:
        if not isinstance(self.factors, Sequence) or isinstance(self.factors, str):
            raise ValueError(
                f"'factors': expected numbers such as (0.8, 1.2), received {self.factors!r:.80}"
            )
        for factor in self.factors:
            positive("factors", factor)
        _probability("resample", self.resample)

    def __call__(self, round: Round) -> list[Config]:
        """See `Explore`."""
        configs = round.inherited()
        for i in round.copies:
            configs[i] = self.changed(round.space, configs[i], round.rng)
        return configs

    def changed(
        self,
        space: SearchSpace,
        config: Config,
        rng: np.random.Generator,
        only: Sequence[str] | None = None,
    ) -> Config:
        """A changed configuration; `only` some paths of it, if given."""

        def moved(domain: Domain, value: Any) -> Any:
            if rng.random() < self.resample:
                return domain.draw(rng.random(domain.uniforms))
            return _moved(domain, value, np.asarray(self.factors), rng)

        return _with_changes(space, config, only, moved)


@dataclass(frozen=True)
class Resample(Explore):
    """Draw hyperparameters of a copied member from their priors.

    **Arguments:**

    - `probability`: with which each is drawn anew; the others are inherited. Default 1.
    """

    probability: float = 1.0

    def __post_init__(self) -> None:
        _probability("probability", self.probability)

    def __call__(self, round: Round) -> list[Config]:
        """See `Explore`."""
        keep = Perturb((1.0, 1.0), self.probability)
        configs = round.inherited()
        for i in round.copies:
            configs[i] = keep.changed(round.space, configs[i], round.rng)
        return configs


@dataclass(frozen=True)
class FollowGradient(Explore):
    """Every member follows the hypergradient of its continuous hyperparameters.

    The gradient is that of the evaluation after `horizon` more steps on fresh batches, by
    `jax.grad` through these steps and the evaluation: so `step` must be differentiable in what the
    hyperparameters change. It is taken in unit coordinates (of the logarithm, for log scales),
    divided by its root mean square over the population, and cut to [-1, 1]:

        u <- clip(u - rate * clip(g / rms(g), -1, 1), 0, 1)

    Copied members do that from their parent's gradient; what has no gradient is perturbed there.
    With one step it is the one-step hypergradient of Luketina et al. (2016), which is short
    sighted (Wu et al. 2018): a rate that is good for the next step is often too low for the rest.

    **Arguments:**

    - `horizon`: steps of the look ahead; each costs about four steps of training, once a round.
      Default 1.
    - `rate`: the longest move, as a share of a hyperparameter's range. Default 0.05.
    - `others`: changes the hyperparameters without gradient. Default `Perturb()`.
    """

    horizon: int = 1
    rate: float = 0.05
    others: Perturb = field(default_factory=Perturb)

    def __post_init__(self) -> None:
        integer("horizon", self.horizon, 1)
        positive("rate", self.rate)

    def __call__(self, round: Round) -> list[Config]:
        """See `Explore`."""
        space, last = round.space, round.history[-1]
        slopes = np.array(
            [np.full(space.dimension, np.nan) if o.slope is None else o.slope for o in last]
        )
        known = np.isfinite(slopes)
        total = np.sum(np.where(known, slopes, 0.0) ** 2, axis=0)
        rms = np.sqrt(total / np.maximum(known.sum(axis=0), 1))
        scaled = np.divide(slopes, rms, out=np.zeros_like(slopes), where=known & (rms > 0))
        moves = self.rate * np.clip(scaled, -1.0, 1.0)
        searched = [
            path for path, domain in space.domains.items()
            if not (isinstance(domain, Float | Logit) and domain.differentiable)
        ]  # fmt: skip
        configs = round.inherited()
        copies = set(round.copies)
        for i, parent in enumerate(round.parents):
            if parent < 0:
                continue
            unit = space.point(configs[i]).unit
            configs[i] = space.decode(np.clip(unit - moves[parent], 0.0, 1.0))
            if i in copies:
                configs[i] = self.others.changed(space, configs[i], round.rng, searched)
        return configs


def _moved(domain: Domain, value: Any, factors: np.ndarray, rng: np.random.Generator) -> Any:
    """A value next to another one."""
    if isinstance(domain, Categorical):
        return value
    if isinstance(domain, Logit):
        low, high = domain.ends
        return domain.decode(domain.encode(value) + np.log(rng.choice(factors)) / (high - low))
    if isinstance(domain, Float) and domain.low > 0:
        new = np.clip(
            np.asarray(value) * rng.choice(factors, np.shape(value)), domain.low, domain.high
        )
        return domain.decode(domain.encode(new.tolist())) if domain.step else new.tolist()
    if isinstance(domain, Float) or domain.differentiable:
        unit = domain.encode(value)
        return domain.decode(np.clip(unit + rng.choice(factors - 1.0, unit.shape), 0.0, 1.0))
    factor = float(rng.choice(factors))
    if factor == 1.0:
        return value
    if isinstance(domain, Int):
        least = 1 if factor > 1 else -1
        wanted = round(value * factor)
        far = wanted if (wanted - value) * least >= 1 else value + least
        return domain.decode(domain.encode(int(np.clip(far, domain.low, domain.high))))
    assert isinstance(domain, Ordinal)
    place = domain.index(value) + (1 if factor > 1 else -1)
    return domain.values[int(np.clip(place, 0, len(domain.values) - 1))]


def _with_changes(
    space: SearchSpace, config: Config, only: Sequence[str] | None, moved: Any
) -> Config:
    flat = dict(space.point(config).flat)
    for path, value in flat.items():
        domain = space.domains[path]
        if isinstance(domain, Constant) or (only is not None and path not in only):
            continue
        flat[path] = moved(domain, value)
    return space.unflatten(flat)


def _probability(name: str, value: float) -> None:
    if not 0 <= finite(name, value, "a probability") <= 1:
        raise ValueError(f"{name!r}: expected a probability, received {value!r:.80}")
