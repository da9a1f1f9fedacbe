"""Evolution strategy with covariance matrix adaptation, over the `cmaes` package.

Hansen and Ostermeier, "Completely derandomized self-adaptation in evolution strategies" (2001). A
normal distribution is moved and reshaped, generation by generation, towards the better half of what
was drawn from it. Its state is what the generations so far make of it: it is computed anew from the
history for each suggestion, so a search that is restored goes on as it would have. Discrete and
categorical hyperparameters have a margin, so that no value dies out (CatCMA with margin: Hamano et
al. 2025). A distribution that has nothing left to find starts again with twice the population
(Auger and Hansen, "A restart CMA evolution strategy with increasing population size", 2005).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from strategies.arguments import integer
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.space import Categorical, SearchSpace

#: First standard deviation, in unit coordinates: a third of the range.
_SIGMA = 0.3
#: Discrete values with a margin of their own; more are as good as a continuum.
_VALUES = 1000
#: Places at which a grid is looked for.
_PLACES = 20_001
#: Doublings of the population.
_DOUBLINGS = 6


class CMAESSearcher(Searcher):
    """Covariance matrix adaptation, for objectives without gradients and thousands of cheap trials.

    Values only. Trials that run at the same time belong to the same generation; the first
    `population` of a generation that have finished make the next one. Failed trials count as the
    worst. The distribution begins around the best of the points that it was given, or around the
    defaults.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher.
    - `population`: trials of a generation. Default: `4 + 3 log(dimension)`, rounded down.

    **Raises:** `ImportError` with the line that installs `cmaes`, if it is missing.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
        population: int | None = None,
    ):
        try:
            import cmaes  # noqa: F401
        except ImportError as error:
            raise ImportError(
                'CMAESSearcher needs cmaes: pip install "hypergrad-engine[cmaes]"'
            ) from error
        super().__init__(space, seed=seed, first=first)
        self.population = None if population is None else integer("population", population, 4)
        self._kept: _Run | None = None

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        run = self._replayed(history, pending)
        unit = run.strategy.unit(run.strategy.ask(self._seed_of(number)))
        note = {"generation": len(run.told), "parents": [o.number for o in run.parents]}
        return Suggestion(number, self.space.decode(unit), note)

    def _seed_of(self, number: int) -> int:
        return int(self.rng(number).integers(2**32))

    def _replayed(self, history: Sequence[Observation], pending: Sequence[Suggestion]) -> "_Run":
        """The distribution after all generations that are complete."""
        drawn: dict[int, dict[int, Observation]] = defaultdict(dict)
        for item in history:
            if item.number is not None and "generation" in item.note:
                drawn[item.note["generation"]][item.number] = item
        chosen: dict[int, list[int]] = {}
        everything: list[Observation | Suggestion] = [*pending, *history]
        for one in sorted(everything, key=lambda one: one.number or 0):
            if one.number is not None and one.note.get("parents"):
                # What a generation was made of stays, whoever finishes late.
                chosen.setdefault(one.note["generation"] - 1, one.note["parents"])

        def parents(generation: int, population: int) -> list[Observation] | None:
            known = drawn[generation]
            numbers = [n for n in chosen.get(generation, sorted(known)) if n in known]
            return [known[n] for n in numbers[:population]] if len(numbers) >= population else None

        given = self._given(history)
        # Taken, so that nobody else goes on with it at the same time.
        run, self._kept = self._kept, None
        if run is None or run.given is not given or not run.agrees(parents):
            run = _Run(given, self._start(given, 0))
        while (found := parents(len(run.told), run.strategy.population)) is not None:
            self._tell(run, found)
        self._kept = run
        return run

    def _tell(self, run: "_Run", parents: list[Observation]) -> None:
        values = [float(o.value or 0.0) for o in parents if o.status == "complete"]
        run.worst = max([run.worst, *values])
        told = []
        for item in parents:
            assert item.number is not None
            assert item.point is not None
            solution = run.strategy.ask(self._seed_of(item.number))
            # What a configuration does not have keeps what was drawn for it.
            active = self.space.active_mask(item.point)
            unit = np.where(active, item.unit, run.strategy.unit(solution))
            value = float(item.value or 0.0) if item.status == "complete" else run.worst
            told.append((run.strategy.moved(solution, unit), value))
        if np.isneginf(run.worst):  # all failed: none is better than another
            told = [(solution, 0.0) for solution, _ in told]
        run.strategy.optimizer.tell(told)
        run.told.append(parents)
        run.populations.append(run.strategy.population)
        if run.strategy.stopped():
            run.restarts += 1
            run.strategy = self._start(None, run.restarts)

    def _given(self, history: Sequence[Observation]) -> Observation | None:
        """The best complete observation that is older than the first draw."""
        own = [o.number for o in history if o.number is not None and "generation" in o.note]
        first = min(own, default=np.inf)
        older = [
            item
            for item in history
            if item.status == "complete" and (item.number is None or item.number < first)
        ]
        return min(older, key=lambda item: item.value or 0.0, default=None)

    def _start(self, given: Observation | None, restarts: int) -> "_Strategy":
        if restarts:
            drawn = np.random.default_rng([self.seed, 0, restarts])
            mean = self.space.encode(self.space.sample(drawn))
        else:
            mean = self.space.encode(self.space.default()) if given is None else given.unit
        kind = _Continuous if self.space.differentiable.all() else _Mixed
        population = self.population or 4 + int(3 * np.log(max(self.space.dimension, 1)))
        return kind(self.space, mean, population * 2 ** min(restarts, _DOUBLINGS))


@dataclass
class _Run:
    """What the history has come to, so that the next suggestion need not begin with it.

    - `given`: where the first distribution began.
    - `strategy`: the distribution now.
    - `told`: the observations of each generation.
    - `populations`: how many these were to be.
    - `worst`: the largest value told.
    """

    given: Observation | None
    strategy: "_Strategy"
    told: list[list[Observation]] = field(default_factory=list)
    populations: list[int] = field(default_factory=list)
    worst: float = -np.inf
    restarts: int = 0

    @property
    def parents(self) -> list[Observation]:
        return self.told[-1] if self.told else []

    def agrees(self, parents: Callable[[int, int], list[Observation] | None]) -> bool:
        """Whether a history has made the same of all generations so far."""
        return all(
            (found := parents(i, population)) is not None
            and all(one is other for one, other in zip(found, told, strict=True))
            for i, (told, population) in enumerate(zip(self.told, self.populations, strict=True))
        )


class _Strategy(Protocol):
    """The distribution of one start, in unit coordinates."""

    optimizer: Any
    population: int

    def __init__(self, space: SearchSpace, mean: np.ndarray, population: int) -> None: ...

    def ask(self, seed: int) -> Any:
        """A draw, whatever was drawn before."""

    def unit(self, solution: Any) -> np.ndarray:
        """Its unit coordinates."""

    def stopped(self) -> bool:
        """Whether it has nothing left to find."""

    def moved(self, solution: Any, unit: np.ndarray) -> Any:
        """The draw at other unit coordinates; itself if they are its own."""


class _Continuous:
    def __init__(self, space: SearchSpace, mean: np.ndarray, population: int) -> None:
        from cmaes import CMA

        self.population = population
        # A mean on the boundary would have half of its draws rejected.
        centre = np.clip(mean, 0.05, 0.95)
        bounds = np.tile([0.0, 1.0], (len(centre), 1))
        self.optimizer = CMA(centre, _SIGMA, bounds, population_size=population)

    def ask(self, seed: int) -> Any:
        self.optimizer.reseed_rng(seed)
        return self.optimizer.ask()

    def unit(self, solution: Any) -> np.ndarray:
        return solution

    def stopped(self) -> bool:
        return self.optimizer.should_stop()

    def moved(self, solution: Any, unit: np.ndarray) -> Any:
        return unit


class _Mixed:
    def __init__(self, space: SearchSpace, mean: np.ndarray, population: int) -> None:
        from cmaes import CatCMAwM

        self.population = population
        self._space = space
        self._free: list[int] = []
        self._grids: dict[int, np.ndarray] = {}
        self._choices: list[tuple[slice, np.ndarray]] = []
        for path, where in space.slices.items():
            domain = space.domains[path]
            if not domain.size:
                continue
            coordinates = range(where.start, where.stop)
            if isinstance(domain, Categorical):
                self._choices.append((where, np.eye(domain.size)))
                continue
            if domain.differentiable:
                self._free += coordinates
                continue
            places = np.repeat(np.linspace(0.0, 1.0, _PLACES)[:, None], domain.size, 1)
            grid = np.unique(np.round(domain.snap(places)[:, 0], 12))
            if len(grid) > _VALUES:
                self._free += coordinates
            elif len(grid) == 2:
                self._choices += [(slice(c, c + 1), grid[:, None]) for c in coordinates]
            else:
                self._grids |= dict.fromkeys(coordinates, grid)
        self._gaussian = [*self._free, *self._grids]
        centre = np.clip(mean[self._gaussian], 0.05, 0.95)
        self.optimizer = CatCMAwM(
            x_space=[[0.0, 1.0]] * len(self._free) or None,
            z_space=[grid.tolist() for grid in self._grids.values()] or None,
            c_space=[len(options) for _, options in self._choices] or None,
            population_size=population,
            mean=centre if len(centre) else None,
            sigma=_SIGMA if len(centre) else None,
        )

    def ask(self, seed: int) -> Any:
        self.optimizer.reseed_rng(seed)
        return self.optimizer.ask()

    def unit(self, solution: Any) -> np.ndarray:
        unit = np.zeros(self._space.dimension)
        if self._free:
            unit[self._free] = solution.x
        if self._grids:
            unit[list(self._grids)] = solution.z
        for row, (where, options) in enumerate(self._choices):
            unit[where] = options[np.argmax(solution.c[row, : len(options)])]
        return unit

    def stopped(self) -> bool:
        # The criteria are those of the normal distribution.
        return bool(self._gaussian) and self.optimizer.should_stop()

    def moved(self, solution: Any, unit: np.ndarray) -> Any:
        own = self.unit(solution)
        if np.allclose(own, unit, atol=1e-9):
            return solution
        changes: dict[str, Any] = {}
        if self._gaussian:
            # The optimizer learns from the point before it was clipped and rounded.
            raw = solution._v_raw.copy()
            other = np.flatnonzero(~np.isclose(own, unit, atol=1e-9)[self._gaussian])
            raw[other] = unit[self._gaussian][other]
            changes["_v_raw"] = raw
        if self._free:
            changes["x"] = unit[self._free]
        if self._grids:
            changes["z"] = unit[list(self._grids)]
        if self._choices:
            code = np.zeros_like(solution.c)
            for row, (where, options) in enumerate(self._choices):
                code[row, np.argmin(np.abs(options - unit[where]).sum(1))] = True
            changes["c"] = code
        return replace(solution, **changes)
