"""Iterative deepening against running Hyperband again, when the maximum was too small.

Hyperband has been run to 16 epochs, and they were too few. Its three deepening variants (Brandt,
Wever et al. 2023) go on to 32 epochs (eta 2) or 48 (eta 3) with all that was evaluated; the rerun
starts from nothing. All draw the same configurations in the same places, so differences are paired.
Budgets are counted twice: every evaluation trained from the start, as in the paper, and resumed
from the configuration's last checkpoint. On all 34 data sets of the LCBench surrogate; the quick
path trains real small networks instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from experiments.data.lcbench import LCBench
from experiments.data.learning_curves import Curves, DigitsCurves, SurrogateCurves
from experiments.harness import COLOURS, Claim, Context, Option, experiment
from strategies.observation import Observation, Report, Suggestion
from strategies.schedulers import IterativeDeepeningHyperband, Job, Scheduler
from strategies.schedulers import run as run_schedule
from strategies.schedulers.iterative_deepening import Variant
from strategies.searchers import RandomSearcher, Searcher
from strategies.space import SearchSpace

ETAS = (2, 3)
VARIANTS: tuple[Variant, ...] = get_args(Variant)
# Total budget relative to both runs of Hyperband, from scratch, as two others have measured it: the
# first two variants' depends on the draws, and what is known of it differs by up to 0.0014.
BUDGETS = {
    2: ((0.767, 0.7675), (0.765, 0.7645), (0.752, 0.752)),
    3: ((0.854, 0.8554), (0.852, 0.8533), (0.844, 0.8443)),
}


class Stream(Searcher):
    """The configurations that Hyperband at `maximum` asks for, drawn beforehand.

    - `row`: the place of each number in `configs`.
    """

    def __init__(self, space: SearchSpace, maximum: int, eta: int, seed: int) -> None:
        super().__init__(space)
        random = RandomSearcher(space, seed=seed)
        largest = IterativeDeepeningHyperband(random, maximum, eta=eta, integer=False)
        numbers = [number for bracket in largest.brackets() for number in bracket.numbers]
        self.row = {number: i for i, number in enumerate(numbers)}
        self.configs = [random.propose(number, [], []).config for number in numbers]

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        return Suggestion(number, self.configs[self.row[number]])


@dataclass(frozen=True)
class Outcome:
    """What a method has spent (epochs, from scratch and resumed) and found.

    - `again`: how much of `spent` was Hyperband at the larger maximum; for the rerun.
    """

    spent: float
    resumed: float
    accuracy: float
    number: int
    again: float = 0.0


def schedule(
    stream: Stream, maximum: int, eta: int, variant: Variant
) -> IterativeDeepeningHyperband:
    """A new scheduler; its rungs are fractions of an epoch where the arithmetic says so."""
    return IterativeDeepeningHyperband(stream, maximum, eta=eta, variant=variant, integer=False)


def compare(curves: Curves, stream: Stream, maximum: int, eta: int) -> dict[str, Outcome]:
    """The rerun and each variant, on one data set. All accuracies are asked for at once."""
    resources = schedule(stream, maximum * eta, eta, "discarding").resources
    values = -curves(stream.configs, resources)

    def objective(job: Job) -> Report:
        # Rungs are counted from the bottom, which does not move when the maximum grows.
        return Report(float(values[stream.row[job.number], job.level]), cost=0.0)

    def outcome(scheduler: Scheduler) -> Outcome:
        best = scheduler.incumbent
        assert best is not None
        assert best.value is not None
        assert best.number is not None
        return Outcome(scheduler.spent, scheduler.spent_resumed, -best.value, best.number)

    found = {}
    for variant in VARIANTS:
        scheduler = run_schedule(objective, schedule(stream, maximum, eta, variant))
        first = outcome(scheduler)  # the same for all variants
        scheduler.deepen()
        found[variant] = outcome(run_schedule(objective, scheduler))
    again = outcome(run_schedule(objective, schedule(stream, maximum * eta, eta, "discarding")))
    found["rerun"] = replace(
        again,
        spent=first.spent + again.spent,
        resumed=first.resumed + again.resumed,
        again=again.spent,
    )
    return found


def full(options: object) -> bool:
    """Whether the run is the published comparison, or its small version."""
    return getattr(options, "quick", False) or (
        getattr(options, "source", "") == "lcbench"
        and getattr(options, "tasks", 0) == 34
        and getattr(options, "seeds", 0) >= 5
        and getattr(options, "maximum", 0) == 16
    )


@experiment(
    paper="Brandt, Wever, Bengs, Hüllermeier 2023, Iterative Deepening Hyperband",
    options=[
        Option("source", "lcbench", quick="training", choices=("lcbench", "training")),
        Option("tasks", 34, quick=1, help="data sets of LCBench"),
        Option("seeds", 30, quick=2, help="repetitions"),
        Option("maximum", 16, quick=8, help="maximum epochs before deepening"),
    ],
    claims=[
        *(
            Claim(
                f"budget {variant} {eta}",
                f"{variant}, eta {eta}: total budget relative to the rerun",
                at_most=max(known) + 0.001,
                # Two runs of one small task: their shares scatter.
                quick=0.95,
                when=full,
            )
            for eta in ETAS
            for variant, known in zip(VARIANTS, BUDGETS[eta], strict=True)
        ),
        Claim("exact", "efficient: budget beyond Hyperband's at the new maximum", at_most=1e-6),
        Claim("cheaper", "largest budget of any run, relative to the rerun", at_most=0.999),
        Claim("identical", "discarding: share of runs with the rerun's result", at_least=1.0),
        *(
            Claim(
                f"accuracy {variant} {eta}",
                f"{variant}, eta {eta}: mean accuracy lost against the rerun (points)",
                at_most=0.05,
                quick=3.0,
                when=full,
            )
            for eta in ETAS
            for variant in VARIANTS[1:]
        ),
    ],
)
def run(context: Context) -> None:
    """All data sets, seeds, both etas."""
    options = context.options
    sources: list[Curves]
    if options.source == "lcbench":
        bench = LCBench()
        sources = [SurrogateCurves(bench, task) for task in bench.tasks[: options.tasks]]
    else:
        sources = [DigitsCurves(seed=options.seed)]
    found: dict[int, list[dict[str, Outcome]]] = {eta: [] for eta in ETAS}
    with context.progress("runs", len(ETAS) * options.seeds * len(sources)) as bar:
        for eta in ETAS:
            for seed in range(options.seed, options.seed + options.seeds):
                for place, curves in enumerate(sources):
                    draws = seed * len(sources) + place  # of its own for each data set
                    stream = Stream(curves.space, options.maximum * eta, eta, draws)
                    found[eta].append(compare(curves, stream, options.maximum, eta))
                    bar.advance()

    rows, largest, beyond, identical = [], 0.0, 0.0, True
    relative: dict[tuple[int, str], float] = {}
    for eta in ETAS:
        runs = found[eta]
        for method in ("rerun", *VARIANTS):
            spent, resumed, lost, same = np.array(
                [
                    (
                        one[method].spent / one["rerun"].spent,
                        one[method].resumed / one["rerun"].resumed,
                        one["rerun"].accuracy - one[method].accuracy,
                        one["rerun"].number == one[method].number,
                    )
                    for one in runs
                ]
            ).T
            relative[eta, method] = spent.mean()
            rows.append(
                {
                    "eta": eta,
                    "method": method,
                    "budget": float(np.mean([one[method].spent for one in runs])),
                    "relative": float(spent.mean()),
                    "spread": float(spent.std()),
                    "resumed": float(np.mean([one[method].resumed for one in runs])),
                    "relative, resumed": float(resumed.mean()),
                    "points lost": float(lost.mean()),
                    "standard error": float(lost.std() / np.sqrt(len(lost))),
                    "same result": float(same.mean()),
                }
            )
            if method == "rerun":
                continue
            largest = max(largest, float(spent.max()))
            if method == "efficient":
                excess = [one[method].spent - one["rerun"].again for one in runs]
                beyond = max(beyond, *excess)
            if method == "discarding":
                identical = identical and bool(same.all() and np.all(lost == 0))
            if full(options):
                context.measure(f"budget {method} {eta}", float(spent.mean()))
                if method != "discarding":
                    context.measure(f"accuracy {method} {eta}", float(lost.mean()))
    context.table("deepening against the rerun", rows)
    context.measure("exact", beyond)
    context.measure("cheaper", largest)
    context.measure("identical", identical)
    with context.figure("budget") as figure:
        axes = figure.subplots()
        places = np.arange(1 + len(VARIANTS))
        for i, eta in enumerate(ETAS):
            heights = [relative[eta, method] for method in ("rerun", *VARIANTS)]
            bars = axes.bar(
                places + 0.4 * (i - 0.5), heights, 0.38, color=COLOURS[i], label=f"eta {eta}"
            )
            axes.bar_label(bars, fmt="%.3f")
        axes.set_xticks(places, ("rerun", *VARIANTS))
        axes.set_ylabel("total budget, relative to the rerun")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")


if __name__ == "__main__":
    raise SystemExit(run.main())
