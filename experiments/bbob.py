"""The 24 BBOB functions: what a gradient is worth to a searcher, and against multi-start L-BFGS-B.

Exact gradients of our own JAX forms; all begin at the middle of the box. Multi-start L-BFGS-B is
SciPy's, from the middle and then from random places; an evaluation with its gradient counts as one,
for it as for ours. Values below 1e-8 count as solved, as in the benchmark's own reports, so that
two solved runs are level. Ranks are means over functions, dimensions and instances.

The two that see gradients search every instance, those that do not the first ones only
(`values_on`), and ranks among all are on these. The whole table is `--values_on 3`.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.stats import rankdata

from experiments.data.bbob import FUNCTIONS, evaluate, instance
from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.harness.optuna_search import available, optuna_search
from strategies import (
    BayesSearcher,
    Float,
    HypergradientSearcher,
    Observation,
    RandomSearcher,
    SearchSpace,
)
from strategies.ledger import Ledger
from strategies.searchers.base import Searcher

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]

_SOLVED = 1e-8
# Level means within this share of the range from the start to the optimum.
_LEVEL = 0.01
_BUDGETS = (10, 25, 50, 100)


class _SpentError(Exception):
    """The evaluations are used up."""


def objective(number: int, dimension: int, seed: int) -> Objective:
    """Value and gradient of a function on the unit cube."""
    arrays = instance(number, dimension, seed)

    def found(unit: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = evaluate(number, arrays, 10.0 * unit - 5.0)
        return value, 10.0 * gradient

    return found


def multistart(function: Objective, dimension: int, trials: int, seed: int) -> list[float]:
    """Values that L-BFGS-B sees, from the middle, then from random places."""
    values: list[float] = []
    rng, start = np.random.default_rng(seed), np.full(dimension, 0.5)

    def counted(unit: np.ndarray) -> tuple[float, np.ndarray]:
        if len(values) == trials:
            raise _SpentError
        value, gradient = function(unit)
        values.append(value)
        return value, gradient

    try:
        while True:
            bounds = [(0.0, 1.0)] * dimension
            minimize(counted, start, jac=True, method="L-BFGS-B", bounds=bounds)
            start = rng.random(dimension)
    except _SpentError:
        return values


def ours(kind: type[Searcher], graded: bool) -> Callable[..., list[float]]:
    """Values that one of our searchers sees."""

    def search(function: Objective, dimension: int, trials: int, seed: int) -> list[float]:
        space = SearchSpace({"x": Float(0.0, 1.0, shape=(dimension,))})
        ledger, values = Ledger(kind(space, seed=seed, first=[space.default()])), []
        for _ in range(trials):
            asked = ledger.ask()
            value, gradient = function(np.array(asked.config["x"]))
            values.append(value)
            slopes = {"x": gradient} if graded else None
            ledger.tell(Observation(asked.config, value, slopes, number=asked.number))
        return values

    return search


def optuna(sampler: str) -> Callable[..., list[float]]:
    """Values that one of Optuna's samplers sees."""

    def search(function: Objective, dimension: int, trials: int, seed: int) -> list[float]:
        space = SearchSpace({"x": Float(0.0, 1.0, shape=(dimension,))})
        values: list[float] = []

        def counted(config: dict) -> float:
            values.append(function(np.array(config["x"]))[0])
            return values[-1]

        optuna_search(sampler, space, counted, trials, seed=seed, first=[space.default()])
        return values

    return search


OURS, RIVAL, BAYES = "hypergradient", "L-BFGS-B", "bayes, values only"
GRADED: dict[str, Callable[..., list[float]]] = {
    OURS: ours(HypergradientSearcher, graded=True),
    RIVAL: multistart,
}
PLAIN: dict[str, Callable[..., list[float]]] = {
    "random": ours(RandomSearcher, graded=False),
    BAYES: ours(BayesSearcher, graded=False),
    "TPE": optuna("TPE"),
    "CMA-ES": optuna("CMA-ES"),
}


def _full(options: object) -> bool:
    """Whether the run is the comparison that the bounds are of, or its small version."""
    if getattr(options, "quick", False):
        return True
    functions, dimensions = getattr(options, "functions", ""), getattr(options, "dimensions", "")
    whole = functions == "all" and dimensions == "2,5,10,20"
    return whole and getattr(options, "trials", 0) >= 100


@experiment(
    paper="Hansen, Finck, Ros & Auger 2009, INRIA RR-6829",
    x64=True,
    options=[
        Option("functions", "all", quick="1,8,10", help="numbers, comma-separated, or 'all'"),
        Option("dimensions", "2,5,10,20", quick="2", help="comma-separated"),
        Option("instances", 3, quick=1, help="instances of each function"),
        Option("values_on", 1, help="of these, those that are searched without gradients, too"),
        Option("trials", 100, quick=25, help="evaluations of a search"),
    ],
    claims=[
        Claim(
            "rank",
            "mean rank of the hypergradient searcher less that of multi-start L-BFGS-B, at the "
            "budget at which it is worst",
            at_most=0.0,
            # Three functions are three places: the largest difference that one of them makes.
            quick=0.5,
            when=_full,
        ),
        Claim(
            "level",
            "functions on which it is at least level with L-BFGS-B in the median, of all 24",
            at_least=22,
            quick=2,
            when=_full,
        ),
        Claim(
            "quarter",
            "share of functions and dimensions on which a quarter of the evaluations find what the "
            "best searcher without gradients finds in all",
            at_least=0.8,
            # After six evaluations in two dimensions, on one function of three.
            quick=0.3,
            when=_full,
        ),
        Claim(
            "values",
            "mean rank of the Bayesian searcher among those without gradients at the end, less the "
            "best other's",
            at_most=0.0,
            # Of three functions, after 25 evaluations.
            quick=0.7,
            when=_full,
        ),
        Claim("random", "share of cells in which it ends below random search", at_least=0.6),
    ],
)
def run(context: Context) -> None:
    """Search every function with every searcher."""
    options = context.options
    every = [str(n + 1) for n in range(len(FUNCTIONS))]
    numbers = [
        int(n) for n in (every if options.functions == "all" else options.functions.split(","))
    ]
    if wrong := [n for n in numbers if str(n) not in every]:
        raise ValueError(f"'functions': expected numbers from 1 to 24, received {wrong}")
    dimensions = [int(d) for d in options.dimensions.split(",")]
    searchers = {**GRADED, **PLAIN}
    for name in ("TPE", "CMA-ES"):
        if not available(name):
            context.say(f"Left out, as it needs a package that is not installed: {name}.")
            del searchers[name]
    cells = [(n, d) for d in dimensions for n in numbers]
    # Best values so far: searcher -> cell -> instance -> evaluation.
    best: dict[str, np.ndarray] = {
        name: np.full((len(cells), options.instances, options.trials), np.nan) for name in searchers
    }
    total = len(cells) * options.instances * len(searchers)
    with context.progress("searches", total=total) as bar:
        for row, (number, dimension) in enumerate(cells):
            for i in range(options.instances):
                function = objective(number, dimension, options.seed + i + 1)
                for name, search in searchers.items():
                    if name in PLAIN and i >= options.values_on:
                        bar.advance()
                        continue
                    found = search(function, dimension, options.trials, options.seed + i)
                    lowest = np.minimum.accumulate(found)
                    best[name][row, i] = np.maximum(lowest, _SOLVED)
                    bar.advance(incumbent=float(lowest[-1]))
    report(context, numbers, cells, best)


def ranked(best: dict[str, np.ndarray], names: list[str], budget: int) -> np.ndarray:
    """Mean rank of each after so many evaluations, among these."""
    found = np.stack([best[name][..., budget - 1] for name in names])
    return np.asarray(rankdata(found, axis=0).mean(axis=(1, 2)))


def report(
    context: Context, numbers: list[int], cells: list[tuple[int, int]], best: dict[str, np.ndarray]
) -> None:
    """Tables and claims."""
    trials = context.options.trials
    budgets = [budget for budget in _BUDGETS if budget <= trials] or [trials]
    # Instances that all have searched.
    shared = {name: runs[:, : context.options.values_on] for name, runs in best.items()}
    names, plain = list(best), [name for name in best if name in PLAIN]
    ranks, apart, among = {}, [], {}
    for budget in budgets:
        ranks[budget] = ranked(shared, names, budget)
        among[budget] = ranked(shared, plain, budget)
        duel = rankdata(np.stack([best[n][..., budget - 1] for n in (OURS, RIVAL)]), axis=0)
        apart.append(float(np.mean(duel[0] - duel[1])))
    context.table(
        "mean rank",
        [
            {"searcher": name, **{f"after {b}": float(ranks[b][i]) for b in budgets}}
            for i, name in enumerate(names)
        ],
    )
    context.table(
        "mean rank among those without gradients",
        [
            {"searcher": name, **{f"after {b}": float(among[b][i]) for b in budgets}}
            for i, name in enumerate(plain)
        ],
    )
    context.table(
        "mean rank against multi-start L-BFGS-B alone, less its own",
        [{f"after {b}": gap for b, gap in zip(budgets, apart, strict=True)}],
    )
    every = rankdata(np.stack([shared[name] for name in names]), axis=0).mean(axis=(1, 2))
    steps = np.arange(1, trials + 1)
    curves = {name: Curve(steps, every[i]) for i, name in enumerate(names)}
    context.plot("rank", curves, x="evaluations", y="mean rank")
    median = {
        name: np.median((shared if name in PLAIN else best)[name][..., -1], axis=1)
        for name in names
    }
    rows = [
        {"function": n, "dimension": d, **{name: float(median[name][i]) for name in best}}
        for i, (n, d) in enumerate(cells)
    ]
    context.table(f"median value above the optimum after {trials}", rows)
    start = np.median(best[RIVAL][..., 0], axis=1)
    behind = (median[OURS] - median[RIVAL]) / np.maximum(start, _SOLVED)
    by_function = [
        float(np.median([b for b, (n, _) in zip(behind, cells, strict=True) if n == number]))
        for number in numbers
    ]
    values = np.stack([median[name] for name in plain])
    quarter = np.median(shared[OURS][..., max(trials // 4, 1) - 1], axis=1)
    last = np.median(shared[OURS][..., -1], axis=1)
    level = sum(value <= _LEVEL for value in by_function)
    if _full(context.options):
        context.measure("rank", max(apart))
        context.measure("level", level)
        context.measure("quarter", float(np.mean(quarter <= values.min(axis=0))))
        bayes = plain.index(BAYES)
        others = np.delete(among[budgets[-1]], bayes)
        context.measure("values", float(among[budgets[-1]][bayes] - others.min()))
    context.measure("random", float(np.mean(last < median["random"])))


if __name__ == "__main__":
    raise SystemExit(run.main())
