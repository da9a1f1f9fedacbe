"""Several objectives: the hypervolume of the front, against Optuna's samplers for them.

Functions whose fronts are known (DTLZ2 with two and three objectives, Deb et al. 2002; ZDT1 to 3,
Zitzler, Deb & Thiele 2000; six variables each), error against training time and against size on the
tables of HPOLib (Klein & Hutter 2019), and error against time on the LCBench surrogate. Each
objective is scaled to the range that it has over 2,000 random configurations of the problem, so
that the yardstick does not depend on what the searches found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.data.hpo_tables import HPOLIB, hpo_table
from experiments.data.lcbench import LCBench
from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.harness.optuna_search import available, optuna_search
from strategies.ledger import Ledger
from strategies.observation import Observation
from strategies.searchers.base import Searcher
from strategies.searchers.multi_objective import MultiObjectiveSearcher
from strategies.searchers.random import RandomSearcher
from strategies.space import Float, SearchSpace
from strategies.surrogates.hypervolume import hypervolume

OURS = "expected hypervolume"
RIVALS = {"TPE (Optuna)": "TPE", "NSGA-II (Optuna)": "NSGA-II", "GP (Optuna)": "GP"}
#: Variables of the functions.
_SIZE = 6
#: Random configurations that the scale is made of.
_DRAWS = 2000


@dataclass(frozen=True)
class Problem:
    """A problem: all objectives are minimised.

    - `low`, `high`: of each objective, over random configurations.
    """

    name: str
    space: SearchSpace
    evaluate: Callable[[dict[str, Any]], tuple[float, ...]]
    low: np.ndarray
    high: np.ndarray

    @property
    def objectives(self) -> int:
        """How many there are."""
        return len(self.low)


def zdt(number: int, x: np.ndarray) -> tuple[float, ...]:
    """ZDT1 has a convex front, ZDT2 a concave one, that of ZDT3 is in five pieces."""
    g = 1 + 9 * float(np.mean(x[1:]))
    ratio = float(x[0]) / g
    shapes = {1: 1 - ratio**0.5, 2: 1 - ratio**2}
    wave = 1 - ratio**0.5 - ratio * float(np.sin(10 * np.pi * x[0]))
    return float(x[0]), g * shapes.get(number, wave)


def dtlz2(objectives: int, x: np.ndarray) -> tuple[float, ...]:
    """A spherical front."""
    angles = x[: objectives - 1] * np.pi / 2
    radius = 1 + float(np.sum((x[objectives - 1 :] - 0.5) ** 2))
    values = []
    for i in range(objectives):
        last = objectives - 1 - i
        part = np.prod(np.cos(angles[:last])) * (np.sin(angles[last]) if i else 1.0)
        values.append(radius * float(part))
    return tuple(values)


def function(name: str, of: Callable[[np.ndarray], tuple[float, ...]]) -> Problem:
    """A problem of a function on the unit cube."""
    space = SearchSpace({"x": Float(0.0, 1.0, shape=(_SIZE,))})
    draws = np.random.default_rng(0).random((_DRAWS, _SIZE))
    values = np.array([of(draw) for draw in draws])
    return Problem(
        name, space, lambda c: of(np.array(c["x"])), values.min(axis=0), values.max(axis=0)
    )


def table(name: str, other: str) -> Problem:
    """Error against `other`, on a table: logarithms of means over the four trainings."""
    found = hpo_table(name)
    columns = [np.log(found.values.mean(axis=1)), np.log(found.others[other].mean(axis=1))]
    values = np.stack(columns, axis=1)
    drawn = values[np.random.default_rng(0).integers(len(values), size=_DRAWS)]
    return Problem(
        f"{name}: error, {other}",
        found.space,
        lambda config: tuple(map(float, values[found.row(config)])),
        drawn.min(axis=0),
        drawn.max(axis=0),
    )


def lcbench(bench: LCBench, task: str) -> Problem:
    """Error against log time, on the surrogate of a data set, as in `cost_aware`."""
    from experiments.cost_aware import lcbench_task

    space, train, low, high = lcbench_task(bench, task)

    def both(config: dict[str, Any]) -> tuple[float, float]:
        error, seconds = train(config)
        return error, float(np.log(seconds))

    return Problem(f"LCBench {task}", space, both, low, high)


def problems(count: int) -> list[Problem]:
    """The first problems, one of each kind first."""
    bench = LCBench()
    makers: list[Callable[[], Problem]] = [
        lambda: function("ZDT1", lambda x: zdt(1, x)),
        lambda: table(HPOLIB[0], "train_time"),
        lambda: function("DTLZ2", lambda x: dtlz2(2, x)),
        lambda: lcbench(bench, bench.tasks[0]),
        lambda: table(HPOLIB[1], "model_size"),
        lambda: function("ZDT2", lambda x: zdt(2, x)),
        lambda: function("ZDT3", lambda x: zdt(3, x)),
        lambda: table(HPOLIB[2], "train_time"),
        lambda: lcbench(bench, bench.tasks[5]),
        lambda: function("DTLZ2, three objectives", lambda x: dtlz2(3, x)),
        lambda: table(HPOLIB[3], "model_size"),
        lambda: lcbench(bench, bench.tasks[10]),
    ]
    return [make() for make in makers[:count]]


def growth(problem: Problem, values: np.ndarray) -> np.ndarray:
    """Hypervolume after each trial, both objectives scaled so that `low, high` are 0 and 1."""
    scaled = (values - problem.low) / (problem.high - problem.low)
    bound = np.ones(problem.objectives)
    return np.array([hypervolume(scaled[: n + 1], bound) for n in range(len(scaled))])


def with_searcher(problem: Problem, searcher: Searcher, trials: int) -> np.ndarray:
    """The values of the trials of one of our searchers."""
    ledger, found = Ledger(searcher), []
    for _ in range(trials):
        suggestion = ledger.ask()
        values = problem.evaluate(suggestion.config)
        found.append(values)
        ledger.tell(Observation(suggestion.config, None, values=values, number=suggestion.number))
    return np.array(found)


@experiment(
    paper="Daulton, Balandat & Bakshy, NeurIPS 2021, arXiv:2105.08195",
    options=[
        Option("trials", 100, quick=40, help="of each rival; ours has half of them"),
        Option("problems", 12, quick=2, help="how many problems"),
        Option("seeds", 3, quick=1, help="repetitions"),
    ],
    claims=[
        Claim(
            "half",
            "share of the problems on which our hypervolume after half of the trials is at least "
            "that of every rival after all",
            at_least=0.9,
            quick=0.5,
        ),
        Claim(
            "mean",
            "our hypervolume after half of the trials over the best rival's after all, in the mean",
            at_least=1.0,
            quick=0.9,
        ),
        Claim(
            "random",
            "our hypervolume after half of the trials over random search's after all, in the mean",
            at_least=1.02,
            quick=1.0,
        ),
    ],
)
def run(context: Context) -> None:
    """Search every problem with every method."""
    options = context.options
    half = options.trials // 2
    rivals = {name: sampler for name, sampler in RIVALS.items() if available(sampler)}
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[np.ndarray]] = {name: [] for name in ("random", *rivals, OURS)}
    chosen = problems(options.problems)
    with context.progress("searches", total=len(chosen) * options.seeds * len(curves)) as bar:
        for problem in chosen:
            areas: dict[str, list[np.ndarray]] = {name: [] for name in curves}
            for seed in range(options.seed, options.seed + options.seeds):
                drawn = with_searcher(
                    problem, RandomSearcher(problem.space, seed=seed), options.trials
                )
                areas["random"].append(growth(problem, drawn))
                bar.advance()
                for name, sampler in rivals.items():
                    values = optuna_search(
                        sampler,
                        problem.space,
                        problem.evaluate,
                        options.trials,
                        seed=seed,
                        objectives=problem.objectives,
                    )
                    areas[name].append(growth(problem, np.array(values)))
                    bar.advance()
                ours = with_searcher(
                    problem, MultiObjectiveSearcher(problem.space, seed=seed), half
                )
                areas[OURS].append(growth(problem, ours))
                bar.advance(incumbent=float(areas[OURS][-1][-1]))
            last = {name: float(np.mean([run[-1] for run in runs])) for name, runs in areas.items()}
            rows.append({"problem": problem.name, **last})
            for name, runs in areas.items():
                # Each in units of the best that anybody has found.
                curves[name] += [run / max(last.values()) for run in runs]
    context.plot(
        "hypervolume",
        {name: Curve.of_runs(np.stack(runs)) for name, runs in curves.items()},
        x="trials",
        y="hypervolume, of the best at the end",
    )
    context.table(f"hypervolume: {half} trials of ours, {options.trials} of the others", rows)
    best = np.array([max(row[name] for name in rivals) for row in rows])
    ours = np.array([row[OURS] for row in rows])
    context.measure("half", float(np.mean(ours >= best)))
    context.measure("mean", float(np.mean(ours / best)))
    context.measure("random", float(np.mean(ours / [row["random"] for row in rows])))


if __name__ == "__main__":
    raise SystemExit(run.main())
