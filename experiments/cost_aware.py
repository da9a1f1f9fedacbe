"""The front between accuracy and training time, and the scaling laws along it.

On the LCBench surrogate (small networks on 34 data sets, eight hyperparameters with the number of
epochs) and on real trainings of a small network on digits. Cost-aware search for the whole front,
in the spirit of CARBS (Fetterman et al. 2023), against multi-objective TPE and random search, by
the hypervolume of validation accuracy against log time. Along the front found, each hyperparameter
follows the cost by a law that the search gives for free.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.data.lcbench import LCBench
from experiments.data.tabular import tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from strategies.observation import Observation
from strategies.searchers.base import Searcher
from strategies.searchers.pareto import ParetoSearcher
from strategies.searchers.random import RandomSearcher
from strategies.space import Float, Int, SearchSpace
from strategies.surrogates.hypervolume import hypervolume

Training = Callable[[dict[str, Any]], tuple[float, float]]


def lcbench_task(bench: LCBench, task: str) -> tuple[SearchSpace, Training]:
    """Error (share) and seconds of a training of the surrogate."""
    domains: dict[str, Any] = {"epoch": Int(1, 52, log=True)}
    for name, (low, high, log, integer) in bench.space.items():
        domains[name] = Int(low, high, log=log) if integer else Float(low, high, log=log)

    def train(config: dict[str, Any]) -> tuple[float, float]:
        out = bench(task, [config], [config["epoch"]])
        seconds = max(float(out["time"][0]), 1e-3)
        return 1 - float(out["val_accuracy"][0]) / 100, seconds

    return SearchSpace(domains), train


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


def with_searcher(searcher: Searcher, train: Training, trials: int) -> np.ndarray:
    """Pairs (error, log seconds) of the trials of one of our searchers."""
    pairs = []
    for _ in range(trials):
        suggestion = searcher.ask()
        error, seconds = train(suggestion.config)
        searcher.tell(Observation(suggestion.config, error, cost=seconds, number=suggestion.number))
        pairs.append((error, np.log(seconds)))
    return np.array(pairs)


def with_tpe(space: SearchSpace, train: Training, trials: int, seed: int) -> np.ndarray:
    """The same for Optuna's multi-objective TPE."""
    import optuna

    from strategies.optuna import suggest

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    pairs = []
    for _ in range(trials):
        trial = study.ask()
        error, seconds = train(suggest(trial, space))
        study.tell(trial, [error, np.log(seconds)])
        pairs.append((error, np.log(seconds)))
    return np.array(pairs)


def growth(pairs: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Hypervolume after each trial, both objectives scaled to [0, 1] and cut at 1."""
    scaled = (pairs - low) / (high - low)
    return np.array([hypervolume(scaled[: n + 1], np.ones(2)) for n in range(len(scaled))])


@experiment(
    paper="Fetterman et al. 2023, arXiv:2306.08055",
    options=[
        Option("trials", 100, quick=20, help="trainings of each search"),
        Option("tasks", 6, quick=1, help="LCBench data sets"),
        Option("seeds", 3, quick=1, help="repetitions"),
        Option("real", 40, quick=12, help="real trainings of each search"),
    ],
    claims=[
        Claim(
            "half",
            "hypervolume after half of the trials, over multi-objective TPE's after all",
            at_least=1.0,
            when=lambda o: not o.quick,
        ),
        Claim("random", "hypervolume over random search's after all trials", at_least=1.0),
        Claim("laws", "hyperparameters with a scaling law", at_least=1),
    ],
)
def run(context: Context) -> None:
    """Search each task with each method, then the real training."""
    options = context.options
    bench = LCBench()
    areas: dict[str, list[np.ndarray]] = {"random": [], "TPE (Optuna)": [], "pareto": []}
    laws: list[dict[str, Any]] = []
    total = options.tasks * options.seeds + 1
    with context.progress("tasks", total=total) as bar:
        for index in range(options.tasks * options.seeds):
            task = bench.tasks[(index // options.seeds) * 5 % len(bench.tasks)]
            seed = options.seed + index % options.seeds
            space, train = lcbench_task(bench, task)
            searcher = ParetoSearcher(space, seed=seed)
            pairs = {
                "random": with_searcher(RandomSearcher(space, seed=seed), train, options.trials),
                "TPE (Optuna)": with_tpe(space, train, options.trials, seed),
                "pareto": with_searcher(searcher, train, options.trials),
            }
            everything = np.concatenate(list(pairs.values()))
            low, high = everything.min(axis=0), np.quantile(everything, 0.95, axis=0)
            for name, found in pairs.items():
                areas[name].append(growth(found, low, high))
            if index % options.seeds == 0:
                laws += [
                    {"task": task, "hyperparameter": path, "exponent": law.exponent,
                     "standard error": law.error}
                    for path, law in searcher.scaling_laws().items()
                ]  # fmt: skip
            bar.advance(incumbent=float(areas["pareto"][-1][-1]))
        space, train = digits_task(options.seed)
        real = {
            "random": with_searcher(RandomSearcher(space, seed=0), train, options.real),
            "TPE (Optuna)": with_tpe(space, train, options.real, 0),
            "pareto": with_searcher(ParetoSearcher(space, seed=0), train, options.real),
        }
        bar.advance()
    context.plot(
        "hypervolume",
        {name: Curve.of_runs(np.stack(runs)) for name, runs in areas.items()},
        x="trainings",
        y="hypervolume, error against log time",
    )
    with context.figure("digits", width=6, height=4) as figure:
        axes = figure.subplots()
        for name, found in real.items():
            axes.scatter(np.exp(found[:, 1]), found[:, 0], s=14, label=name)
        axes.set(xscale="log", yscale="log", xlabel="training time (s)", ylabel="error, digits")
        axes.legend(frameon=False)
    last = {name: float(np.mean([run[-1] for run in runs])) for name, runs in areas.items()}
    half = float(np.mean([run[options.trials // 2 - 1] for run in areas["pareto"]]))
    context.table(
        "hypervolume",
        [
            {
                "searcher": name,
                "half of the trials": float(np.mean([r[options.trials // 2 - 1] for r in runs])),
                "all trials": last[name],
            }
            for name, runs in areas.items()
        ],
    )
    if laws:
        context.table("scaling laws", laws)
    context.measure("random", last["pareto"] / last["random"])
    context.measure("laws", len(laws))
    if not options.quick:
        context.measure("half", half / last["TPE (Optuna)"])


if __name__ == "__main__":
    raise SystemExit(run.main())
