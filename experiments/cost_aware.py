"""The front between accuracy and training time, and the scaling laws along it.

On the LCBench surrogate (small networks on 34 data sets, eight hyperparameters with the number of
epochs) and on real trainings of a small network on digits. Cost-aware search for the whole front,
in the spirit of CARBS (Fetterman et al. 2023), against multi-objective TPE and random search, by
the hypervolume of validation accuracy against log time. Both are scaled to the range that they have
over 2,000 random configurations of the task, so that the yardstick does not depend on what the
searches found.

Along the front found, each hyperparameter follows the cost by a law that the search gives for free.
Where the law is known, on a task made for it, its exponent is compared with the truth.

The paper's own method (`CARBSSearcher`) has no bounds. From a centre whose rate is three decades
off it must walk to the best one, and power laws fitted to the front that it found below a cost `c`
must predict size, epochs and rate at `8 c`, where nothing was tried: the loss of the predicted
configuration over the best that there is at this cost.

A second of a real training is measured, and other work on the machine is measured with it: the real
trainings are repeated with several seeds, and judged in the mean.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.data.lcbench import LCBench
from experiments.data.tabular import tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.harness.optuna_search import optuna_search
from strategies.laws import PowerLaw
from strategies.ledger import Ledger
from strategies.observation import Observation
from strategies.searchers.carbs import CARBSSearcher
from strategies.searchers.pareto import ParetoSearcher
from strategies.searchers.random import RandomSearcher
from strategies.space import Float, Int, SearchSpace, around
from strategies.surrogates.hypervolume import hypervolume

Training = Callable[[dict[str, Any]], tuple[float, float]]
# A searcher, and what it was told.
Searched = tuple[ParetoSearcher, list[Observation]]
TPE, OURS = "TPE (Optuna)", "pareto"


def lcbench_task(bench: LCBench, task: str) -> tuple[SearchSpace, Training, np.ndarray, np.ndarray]:
    """A data set of the surrogate.

    **Returns:** The space, a training's error (share) and seconds, and the smallest and the largest
    error and log seconds of 2,000 random configurations. No training is faster than the fastest of
    these: in some corners of the space the surrogate answers with times of nothing and less, which
    a search for cheap trainings would find.
    """
    domains: dict[str, Any] = {"epoch": Int(1, 52, log=True)}
    for name, (low, high, log, integer) in bench.space.items():
        domains[name] = Int(low, high, log=log) if integer else Float(low, high, log=log)
    space, rng = SearchSpace(domains), np.random.default_rng(0)
    configs = [space.sample(rng) for _ in range(2000)]
    out = bench(task, configs, [config["epoch"] for config in configs])
    possible = out["time"] > 0
    errors, logs = 1 - out["val_accuracy"][possible] / 100, np.log(out["time"][possible])
    pairs = np.stack([errors, logs], axis=1).astype(float)
    fastest = float(np.exp(pairs[:, 1].min()))

    def train(config: dict[str, Any]) -> tuple[float, float]:
        out = bench(task, [config], [config["epoch"]])
        error = max(1 - float(out["val_accuracy"][0]) / 100, 0.0)
        return error, max(float(out["time"][0]), fastest)

    return space, train, pairs.min(axis=0), pairs.max(axis=0)


def digits_task(seed: int) -> tuple[SearchSpace, Training]:
    """Error (share) and seconds of a real training of one hidden layer."""
    from sklearn.neural_network import MLPClassifier

    data = tabular("digits", seed=seed)
    space = SearchSpace(
        {
            "width": Int(4, 128, log=True),
            "epochs": Int(2, 64, log=True),
            "learning_rate": Float(1e-4, 1e-1, log=True),
            "weight_decay": Float(1e-6, 1.0, log=True),
        }
    )

    def train(config: dict[str, Any]) -> tuple[float, float]:
        model = MLPClassifier(
            (config["width"],),
            max_iter=config["epochs"],
            learning_rate_init=config["learning_rate"],
            alpha=config["weight_decay"],
            random_state=seed,
        )
        started = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged: epochs are what is tuned
            model.fit(data.train.x / 16, data.train.y)
        seconds = time.process_time() - started
        return 1 - model.score(data.validation.x / 16, data.validation.y), seconds

    return space, train


def with_searcher(ledger: Ledger, train: Training, trials: int) -> np.ndarray:
    """Pairs (error, log seconds) of the trials of one of our searchers."""
    pairs = []
    for _ in range(trials):
        suggestion = ledger.ask()
        error, seconds = train(suggestion.config)
        ledger.tell(Observation(suggestion.config, error, cost=seconds, number=suggestion.number))
        pairs.append((error, np.log(seconds)))
    return np.array(pairs)


def with_tpe(space: SearchSpace, train: Training, trials: int, seed: int) -> np.ndarray:
    """The same for Optuna's multi-objective TPE."""

    def both(config: dict[str, Any]) -> tuple[float, float]:
        error, seconds = train(config)
        return error, float(np.log(seconds))

    return np.array(optuna_search("TPE", space, both, trials, seed=seed, objectives=2))


def growth(pairs: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Hypervolume after each trial, both objectives scaled so that `low, high` are 0 and 1."""
    scaled = (pairs - low) / (high - low)
    return np.array([hypervolume(scaled[: n + 1], np.ones(2)) for n in range(len(scaled))])


def law_found(exponent: float, trials: int, seed: int) -> float:
    """The exponent found where the best rate is `0.01 (size / 100)^exponent`, geometric middles."""
    space = SearchSpace({"size": Float(1.0, 1e4, log=True), "rate": Float(1e-4, 1.0, log=True)})
    searcher = ParetoSearcher(space, seed=seed)

    def train(config: dict[str, Any]) -> tuple[float, float]:
        size, rate = config["size"], config["rate"]
        off = np.log10(rate) + 2 - exponent * (np.log10(size) - 2)
        return 0.1 + size**-0.3 + float(off) ** 2, size

    ledger = Ledger(searcher)
    with_searcher(ledger, train, trials)
    return searcher.scaling_laws(ledger.history)["rate"].exponent


# Where the best rate is known: at size 100, and how it falls with the size.
RATE, FALL = 0.01, -0.4
# Costs to which the walk, and the front behind the laws, may go.
CEILING = 1e4


def rate_at(size: float) -> float:
    """The best rate of a size."""
    return RATE * (size / 100) ** FALL


def walked(trials: int, seed: int) -> float:
    """Decades between the rate of the best trial and the best rate; the centre's are three."""
    space = SearchSpace({"size": around(100.0), "rate": around(RATE * 1e3)})

    def train(config: dict[str, Any]) -> tuple[float, float]:
        size, rate = config["size"], config["rate"]
        off = float(np.log10(rate / rate_at(size)))
        return 0.1 + size**-0.3 + 0.1 * off**2, size

    ledger = Ledger(CARBSSearcher(space, seed=seed, max_cost=CEILING))
    with_searcher(ledger, train, trials)
    best = min(ledger.history, key=lambda item: item.value or np.inf).config
    return abs(float(np.log10(best["rate"] / rate_at(best["size"]))))


def compute_optimal(size: float, epochs: float, rate: float) -> float:
    """A loss that falls with the size and the epochs, whose product is the cost."""
    off = np.log10(rate / rate_at(size))
    return float(0.1 + size**-0.3 + 2 * epochs**-0.4 + 0.1 * off**2)


def predicted(trials: int, seed: int) -> float:
    """Loss at eight times the ceiling, of what laws below it predict, over the best there."""
    space = SearchSpace({"size": around(10.0), "epochs": around(10.0), "rate": around(0.1)})
    rng = np.random.default_rng(seed)

    def train(config: dict[str, Any]) -> tuple[float, float]:
        value = compute_optimal(**config) * (1 + 0.01 * rng.standard_normal())
        return value, config["size"] * config["epochs"]

    searcher = CARBSSearcher(space, seed=seed, max_cost=CEILING)
    ledger = Ledger(searcher)
    with_searcher(ledger, train, trials)
    points = [{"cost": item.cost or 0.0, **item.config} for item in searcher.front(ledger.history)]
    cost = 8 * CEILING
    size, epochs, rate = (
        PowerLaw.fit(points, ["cost"], name).predict({"cost": cost}).value
        for name in ("size", "epochs", "rate")
    )
    # What the laws leave of the cost, or ask beyond it, is shared by both.
    share = np.sqrt(cost / (size * epochs))
    sizes = np.logspace(0, np.log10(cost), 400)
    best = min(compute_optimal(s, cost / s, rate_at(s)) for s in sizes)
    return compute_optimal(size * share, epochs * share, rate) / best


@experiment(
    paper="Fetterman et al. 2023, arXiv:2306.08055",
    options=[
        Option("trials", 100, quick=20, help="trainings of each search"),
        Option("tasks", 4, quick=1, help="LCBench data sets"),
        Option("seeds", 5, quick=1, help="repetitions"),
        Option("real", 40, quick=8, help="real trainings of each search"),
        Option("real_seeds", 5, quick=2, help="repetitions of the real trainings"),
        Option("walks", 5, quick=1, help="walks, and laws that are extrapolated"),
        Option("steps", 150, quick=40, help="trainings of each of them"),
        Option("known", 60, quick=25, help="trainings where the scaling law is known"),
    ],
    claims=[
        Claim(
            "half",
            "hypervolume after half of the trials, over multi-objective TPE's after all",
            at_least=1.0,
            quick=0.6,
        ),
        Claim(
            "random",
            "hypervolume over random search's after all trials",
            at_least=1.0,
            # One search of twenty trials is a matter of luck.
            quick=0.8,
        ),
        Claim(
            "real",
            "real trainings: hypervolume over random search's, mean of the seeds",
            at_least=1.0,
            # Eight trials, five of which are the first model's.
            quick=0.8,
        ),
        Claim(
            "walk",
            "decades from the best rate after a start three decades off (median)",
            at_most=0.3,
            quick=1.0,
        ),
        Claim(
            "extrapolated",
            "loss at 8 times the largest cost, as laws predict it, over the best there (median)",
            at_most=1.03,
            # Forty trainings have not come far up in cost.
            quick=2.0,
        ),
        Claim("known", "error of the exponent where the law is known", at_most=0.1),
        Claim("none", "exponent found where the cost changes nothing", at_most=0.1),
    ],
)
def run(context: Context) -> None:
    """Search each task with each method, then the real training."""
    options = context.options
    bench = LCBench()
    areas: dict[str, list[np.ndarray]] = {name: [] for name in ("random", TPE, OURS)}
    by_task: list[dict[str, Any]] = []
    laws: list[dict[str, Any]] = []
    searched: dict[str, Searched] = {}
    half = options.trials // 2
    tasks = [bench.tasks[index * 5 % len(bench.tasks)] for index in range(options.tasks)]
    total = 3 * (len(tasks) * options.seeds + options.real_seeds)
    with context.progress("searches", total=total) as bar:
        for task in tasks:
            space, train, low, high = lcbench_task(bench, task)
            for seed in range(options.seed, options.seed + options.seeds):
                searcher = ParetoSearcher(space, seed=seed)
                ledger = Ledger(searcher)
                for name, pairs in every_search(space, train, ledger, options.trials, seed):
                    areas[name].append(growth(pairs, low, high))
                    bar.advance(incumbent=float(areas[name][-1][-1]))
                searched.setdefault(f"LCBench {task}", (searcher, ledger.history))
            ends = {name: np.array(runs[-options.seeds :]) for name, runs in areas.items()}
            by_task.append(
                {
                    "task": task,
                    "random, all": float(ends["random"][:, -1].mean()),
                    "TPE, all": float(ends[TPE][:, -1].mean()),
                    "pareto, half": float(ends[OURS][:, half - 1].mean()),
                    "pareto, all": float(ends[OURS][:, -1].mean()),
                }
            )
        real: list[dict[str, np.ndarray]] = []
        for seed in range(options.seed, options.seed + options.real_seeds):
            space, train = digits_task(seed)
            searcher = ParetoSearcher(space, seed=seed)
            ledger = Ledger(searcher)
            real.append({})
            for name, pairs in every_search(space, train, ledger, options.real, seed):
                real[-1][name] = pairs
                bar.advance()
            searched.setdefault("digits", (searcher, ledger.history))
    for task, (searcher, history) in searched.items():
        laws += [
            {"task": task, "hyperparameter": path, "exponent": law.exponent,
             "standard error": law.error}
            for path, law in searcher.scaling_laws(history).items()
        ]  # fmt: skip
    context.plot(
        "hypervolume",
        {name: Curve.of_runs(np.stack(runs)) for name, runs in areas.items()},
        x="trainings",
        y="hypervolume, error against log time",
    )
    with context.figure("digits", width=6, height=4) as figure:
        axes = figure.subplots()
        for name, found in real[0].items():
            axes.scatter(np.exp(found[:, 1]), found[:, 0], s=14, label=name)
        axes.set(xscale="log", yscale="log", xlabel="training time (s)", ylabel="error, digits")
        axes.legend(frameon=False)
    draw_laws(context, searched)
    digits: dict[str, list[float]] = {name: [] for name in areas}
    for runs_of_seed in real:
        everything = np.concatenate(list(runs_of_seed.values()))
        ends = everything.min(axis=0), everything.max(axis=0)
        for name, pairs in runs_of_seed.items():
            digits[name].append(float(growth(pairs, *ends)[-1]))
    context.table(
        "hypervolume on digits",
        [
            {
                "searcher": name,
                "all trials": float(np.mean(found)),
                "smallest": min(found),
                "largest": max(found),
            }
            for name, found in digits.items()
        ],
    )
    last = {name: float(np.mean([run[-1] for run in runs])) for name, runs in areas.items()}
    context.table(
        "hypervolume",
        [
            {
                "searcher": name,
                "half of the trials": float(np.mean([r[half - 1] for r in runs])),
                "all trials": last[name],
            }
            for name, runs in areas.items()
        ],
    )
    context.table("hypervolume by task", by_task)
    if laws:
        context.table("scaling laws", laws)
    for claim, exponent in (("known", -0.4), ("none", 0.0)):
        found = law_found(exponent, options.known, options.seed)
        context.measure(claim, abs(found - exponent))
    context.measure("real", float(np.mean(digits[OURS]) / np.mean(digits["random"])))
    starts = range(options.seed, options.seed + options.walks)
    walks = [walked(options.steps, seed) for seed in starts]
    laws_at = [predicted(options.steps, seed) for seed in starts]
    context.table(
        "CARBS",
        [
            {"seed": seed, "decades off": off, "loss at 8 times the cost, over the best": ratio}
            for seed, off, ratio in zip(starts, walks, laws_at, strict=True)
        ],
    )
    context.measure("walk", float(np.median(walks)))
    context.measure("extrapolated", float(np.median(laws_at)))
    context.measure("random", last[OURS] / last["random"])
    at_half = float(np.mean([run[half - 1] for run in areas[OURS]]))
    context.measure("half", at_half / last[TPE])


def every_search(
    space: SearchSpace, train: Training, ledger: Ledger, trials: int, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """The trials of random search, of multi-objective TPE and of ours."""
    yield "random", with_searcher(Ledger(RandomSearcher(space, seed=seed)), train, trials)
    yield TPE, with_tpe(space, train, trials, seed)
    yield OURS, with_searcher(ledger, train, trials)


def draw_laws(context: Context, searched: dict[str, Searched]) -> None:
    """The members of a front and the law through them: the surest of each task."""
    with context.figure("laws", width=3 * len(searched), height=3) as figure:
        panels = figure.subplots(1, len(searched), squeeze=False)[0]
        for axes, (task, (searcher, history)) in zip(panels, searched.items(), strict=True):
            axes.set(title=task, xscale="log", xlabel="training time (s)")
            laws = searcher.scaling_laws(history)
            if not laws:
                continue
            path = max(laws, key=lambda name: abs(laws[name].exponent) / (laws[name].error + 1e-9))
            law, log = laws[path], searcher.space.domains[path].log  # type: ignore[attr-defined]
            front = searcher.front(history)
            cost = np.array([item.cost for item in front], float)
            values = [searcher.space.flatten(item.config)[path] for item in front]
            line = law.factor * cost**law.exponent
            axes.scatter(cost, values, s=14)
            axes.plot(cost, line if log else law.factor + law.exponent * np.log(cost))
            axes.set(yscale="log" if log else "linear", ylabel=path)


if __name__ == "__main__":
    raise SystemExit(run.main())
