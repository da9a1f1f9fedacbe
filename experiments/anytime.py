"""Schedulers and searchers: the best accuracy against the epochs spent.

Hyperband, ASHA and Iterative Deepening Hyperband, each with random search, TPE and the Bayesian
searcher inside, on learning curves of LCBench (seven hyperparameters, at most 52 epochs, 12 data
sets), until the budget of 50 full trainings is spent. Every evaluation counts as trained from the
start, as the published comparisons count.
The regret `(best - f) / (best - median)` is that of the best accuracy observed, where `best` and
`median` are those of 100,000 configurations drawn at random; whoever is better than all of those
has regret 0. The quick path trains real small networks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from experiments.data.lcbench import LCBench
from experiments.data.learning_curves import Curves, DigitsCurves, SurrogateCurves
from experiments.harness import Claim, Context, Curve, Option, experiment
from strategies.schedulers import ASHA, Hyperband, IterativeDeepeningHyperband, Scheduler
from strategies.searchers import BayesSearcher, RandomSearcher, Searcher, TPESearcher

ETA = 3
SEARCHERS: dict[str, type[Searcher]] = {
    "random": RandomSearcher,
    "TPE": TPESearcher,
    "Bayes": BayesSearcher,
}
SCHEDULERS: dict[str, Callable[[Searcher, int], Scheduler]] = {
    "Hyperband": lambda searcher, maximum: Hyperband(searcher, maximum, eta=ETA),
    "ASHA": lambda searcher, maximum: ASHA(searcher, maximum, eta=ETA),
    "ID-HB": lambda searcher, maximum: IterativeDeepeningHyperband(
        searcher, Fraction(maximum, ETA), eta=ETA
    ),
}
MARKS = (0.25, 0.5, 1.0)
BOUNDS = (0.20, 0.13, 0.085)
QUICK_BOUNDS = (0.9, 0.7, 0.5)


@dataclass(frozen=True)
class Trace:
    """One search: after each job the epochs spent, each job from scratch, and the best (%)."""

    spent: np.ndarray
    best: np.ndarray

    def at(self, budgets: np.ndarray) -> np.ndarray:
        """The best accuracy within each budget; none was seen before the first job ended."""
        place = np.searchsorted(self.spent, budgets, side="right") - 1
        return np.where(place < 0, -np.inf, self.best[np.maximum(place, 0)])


def search(curves: Curves, scheduler: Scheduler, maximum: int, budget: float) -> Trace:
    """Work on a scheduler's jobs until the budget is spent; a job that exceeds it is not begun."""
    spent, best = [0.0], [-np.inf]
    while True:
        job = scheduler.ask()
        if job is None:
            grow(scheduler, maximum)
            continue
        if spent[-1] + job.resource > budget:
            return Trace(np.array(spent[1:]), np.array(best[1:]))
        accuracy = float(curves([job.config], [job.resource])[0, 0])
        scheduler.tell(job.number, accuracy, maximise=True)
        spent.append(spent[-1] + job.resource)
        best.append(float(np.fmax(best[-1], accuracy)))


def grow(scheduler: Scheduler, maximum: int) -> None:
    """What follows when all brackets have ended: more resource for each, then more brackets."""
    assert isinstance(scheduler, Hyperband)
    if isinstance(scheduler, IterativeDeepeningHyperband) and scheduler.max_resource < maximum:
        scheduler.deepen(maximum)
    else:
        assert scheduler.iterations is not None
        scheduler.iterations += 1


def reference(curves: Curves, configs: list[dict], maximum: int) -> tuple[float, float]:
    """The best and the median accuracy of configurations after the full training."""
    blocks = [configs[i : i + 5000] for i in range(0, len(configs), 5000)]
    accuracy = np.concatenate([curves(block, [maximum])[:, 0] for block in blocks])
    accuracy = accuracy[np.isfinite(accuracy)]
    return float(accuracy.max()), float(np.median(accuracy))


def full(options: object) -> bool:
    """Whether the run is the comparison that the bounds are of, or its small version."""
    return getattr(options, "quick", False) or (
        getattr(options, "source", "") == "lcbench"
        and getattr(options, "tasks", 0) == 12
        and getattr(options, "trainings", 0) == 50
        and getattr(options, "maximum", 0) == 52
    )


@experiment(
    paper="Li et al. 2018, Falkner et al. 2018, Brandt et al. 2023",
    options=[
        Option("source", "lcbench", quick="training", choices=("lcbench", "training")),
        Option("tasks", 12, quick=1, help="data sets of LCBench"),
        Option("seeds", 1, help="repetitions with a model inside"),
        Option("random_seeds", 5, quick=1, help="repetitions with random search inside"),
        Option("trainings", 50, quick=16, help="budget in full trainings"),
        Option("maximum", 52, quick=9, help="epochs of a full training"),
        Option("draws", 100_000, quick=60, help="random configurations of the reference"),
    ],
    claims=[
        *(
            Claim(
                f"regret {mark}",
                f"Bayes in Hyperband or ID-HB: regret at {mark:.0%} of the budget",
                at_most=bound,
                quick=small,
                when=full,
            )
            for mark, bound, small in zip(MARKS, BOUNDS, QUICK_BOUNDS, strict=True)
        ),
        Claim(
            "better",
            "Bayes in Hyperband or ID-HB against random in Hyperband: difference of the regrets",
            at_most=0.0,
            quick=0.1,
            when=full,
        ),
        Claim("sound", "largest regret of any pair at the end of the budget", at_most=0.5),
    ],
)
def run(context: Context) -> None:
    """Every scheduler with every searcher on every data set."""
    options = context.options
    sources: list[Curves]
    if options.source == "lcbench":
        bench = LCBench()
        sources = [SurrogateCurves(bench, task) for task in bench.tasks[: options.tasks]]
    else:
        sources = [DigitsCurves(seed=options.seed)]
    budget = float(options.trainings * options.maximum)
    rng = np.random.default_rng([options.seed, 1])
    space = sources[0].space  # the same for all
    drawn = [space.sample(rng) for _ in range(options.draws)]
    seeds = {
        name: options.random_seeds if name == "random" else options.seeds for name in SEARCHERS
    }
    grid = budget * np.linspace(0.04, 1, 97)
    regrets: dict[str, list[np.ndarray]] = {}
    total = len(sources) * len(SCHEDULERS) * sum(seeds.values())
    with context.progress("searches", total) as bar:
        for place, curves in enumerate(sources):
            best, median = reference(curves, drawn, options.maximum)

            def regret(
                accuracy: np.ndarray, best: float = best, median: float = median
            ) -> np.ndarray:
                return np.clip((best - accuracy) / (best - median), 0, 1)

            for inside, kind in SEARCHERS.items():
                for seed in range(seeds[inside]):
                    for outside, make in SCHEDULERS.items():
                        searcher = kind(curves.space, seed=(options.seed + seed) * 100 + place)
                        trace = search(
                            curves, make(searcher, options.maximum), options.maximum, budget
                        )
                        name = f"{outside}, {inside}"
                        regrets.setdefault(name, []).append(regret(trace.at(grid)))
                        bar.advance(incumbent=trace.best[-1])

    marks = [int(np.searchsorted(grid, mark * budget - 1e-9)) for mark in MARKS]
    rows = []
    for name, runs in regrets.items():
        at_marks = np.array(runs)[:, marks]
        rows.append(
            {
                "scheduler, searcher": name,
                **{f"{m:.0%}": v for m, v in zip(MARKS, at_marks.mean(0), strict=True)},
                "standard error": float(at_marks[:, -1].std() / np.sqrt(len(runs))),
            }
        )
    context.table("normalised regret", rows)
    context.plot(
        "regret",
        {name: Curve(grid, np.mean(runs, axis=0)) for name, runs in regrets.items()},
        x="epochs spent, every evaluation from the start",
        y="mean normalised regret",
        y_scale="log",
    )
    found = {row["scheduler, searcher"]: [row[f"{mark:.0%}"] for mark in MARKS] for row in rows}
    ours = min(
        (found[f"{outside}, Bayes"] for outside in ("Hyperband", "ID-HB")), key=lambda v: v[-1]
    )
    if full(options):
        for mark, value in zip(MARKS, ours, strict=True):
            context.measure(f"regret {mark}", value)
        context.measure("better", ours[-1] - found["Hyperband, random"][-1])
    context.measure("sound", max(regrets[-1] for regrets in found.values()))


if __name__ == "__main__":
    raise SystemExit(run.main())
