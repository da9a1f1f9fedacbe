"""Regularised evolution (Real, Aggarwal, Huang and Le, AAAI 2019)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from strategies.arguments import integer
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.searchers.mutation import perturbed
from strategies.space import SearchSpace


class EvolutionSearcher(Searcher):
    """Mutates the best of a few of the youngest; age, not quality, decides who leaves.

    The population is the latest `population` finished trials; a parent is the best of `contest` of
    them drawn at random; a child differs from it in one hyperparameter, and values that come into
    existence by that change are drawn anew. A lucky noisy value thus dies of age.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher.
    - `population`: its size, and the number of random draws at the beginning.
    - `contest`: number of candidates for parenthood, between 1 and `population`.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        population: int = 20,
        contest: int = 5,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
    ):
        super().__init__(space, seed=seed, first=first)
        self.population = integer("population", population, 2)
        self.contest = integer("contest", contest, 1)
        if self.contest > self.population:
            raise ValueError(f"'contest': expected 1 to {population}, received {contest!r}")

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        rng = self.rng(number)
        alive = [item for item in history if item.status == "complete"][-self.population :]
        if len(alive) < self.population:
            return Suggestion(number, self.space.sample(rng))
        rivals = rng.choice(len(alive), self.contest, replace=False)
        parent = alive[min(rivals, key=lambda i: (alive[i].value, i))]
        flat = self.space.flatten(parent.config)
        for _ in range(100):
            tunable = [path for path in flat if self.space.domains[path].tunable]
            path = tunable[int(rng.integers(len(tunable)))]
            domain = self.space.domains[path]
            moved = domain.decode(perturbed(rng, domain, domain.encode(flat[path])))
            config = self._grown({**flat, path: moved}, rng)
            if self.space.feasible(config):
                break
        return Suggestion(number, config, {"parent": parent.number, "changed": path})

    def _grown(self, flat: Mapping[str, Any], rng: Any) -> dict[str, Any]:
        """What is no longer active is dropped, and what has become active is drawn."""

        def value(path: str) -> Any:
            domain = self.space.domains[path]
            return flat[path] if path in flat else domain.draw(rng.random(domain.uniforms))

        return self.space.unflatten(self.space.active(value))
