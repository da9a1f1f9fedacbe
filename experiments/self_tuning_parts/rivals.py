"""The searches that train anew for each choice, all with the cost of so many whole trainings.

Each takes `(trainer, rounds, trials, seed, report)`: how many rounds a training has, and how many
trainings the search may pay.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna

from experiments.self_tuning_parts.task import MOST_HOLES, Values, search_space
from experiments.self_tuning_parts.trainer import Report, Trace, Trainer, train
from strategies import Observation, RandomSearcher
from strategies.local import minimize
from strategies.population import PBT
from strategies.schedulers.hyperband import Hyperband
from strategies.schedulers.local import run as run_jobs


def random_search(
    trainer: Trainer, rounds: int, trials: int, seed: int, report: Report
) -> tuple[Trace, list[tuple[float, Values]]]:
    """Random search; the losses and configurations of its trials, too."""
    trace, results = Trace(trainer.steps), []
    space = search_space(trainer.task.side)

    def objective(config: Values) -> float:
        value = train(trainer, [config] * rounds, trace, report)
        results.append((value, config))
        return value

    minimize(objective, space, trials=trials, searcher=RandomSearcher(space, seed=seed))
    return trace, results


def parzen(trainer: Trainer, rounds: int, trials: int, seed: int, report: Report) -> Trace:
    """Tree-structured Parzen estimators."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trace, side = Trace(trainer.steps), trainer.task.side

    def objective(trial: optuna.Trial) -> float:
        values = {
            "dropout": [trial.suggest_float(f"dropout {i}", 0.0, 0.8) for i in range(2)],
            "decay": trial.suggest_float("decay", 1e-7, 1e-2, log=True),
            "smoothing": trial.suggest_float("smoothing", 0.0, 0.5),
            "noise": trial.suggest_float("noise", 0.0, 0.5),
            "shift": trial.suggest_float("shift", 0.0, side / 7),
            "brightness": trial.suggest_float("brightness", 0.0, 0.8),
            "cutout": trial.suggest_int("cutout", 0, side // 2),
            "holes": trial.suggest_int("holes", 0, MOST_HOLES),
        }
        return train(trainer, [values] * rounds, trace, report)

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=trials)
    return trace


def hyperband(trainer: Trainer, rounds: int, trials: int, seed: int, report: Report) -> Trace:
    """Hyperband over rounds."""
    trace, kept = Trace(trainer.steps), {}
    searcher = RandomSearcher(search_space(trainer.task.side), seed=seed)

    def objective(job: Any) -> float:
        state, best = kept.get(job.number) or (trainer.start(), np.inf)
        for _ in range(int(job.resource - job.resume_from)):
            state, done = trainer.advance(state, job.config)
            trace.add(done)
            best = min(best, done.loss)
            report(trace.best)
        kept[job.number] = (state, best)
        return best

    scheduler = Hyperband(searcher, rounds, iterations=None)
    run_jobs(objective, scheduler, budget=trials * rounds)
    return trace


def population_based(
    trainer: Trainer, rounds: int, trials: int, seed: int, report: Report
) -> Trace:
    """Population-based training of `trials` members; they copy and vary after every round."""
    trace, space = Trace(trainer.steps), search_space(trainer.task.side)
    searcher = RandomSearcher(space, seed=seed)
    search = PBT(searcher, rounds, 1)
    rng = np.random.default_rng(seed)
    states = [trainer.start() for _ in range(trials)]
    configs = [space.sample(rng) for _ in range(trials)]
    history: list[list[Observation]] = []
    for number in range(rounds):
        if number:
            parents, configs = search.plan(number, history)
            states = [trainer.start() if p < 0 else states[p] for p in parents]
        results = []
        for member, config in enumerate(configs):
            states[member], done = trainer.advance(states[member], config)
            trace.add(done)
            report(trace.best)
            value = done.loss if np.isfinite(done.loss) else None
            results.append(Observation(config, value, number=number * trials + member))
        history.append(results)
    return trace


RIVALS: dict[str, Callable[[Trainer, int, int, int, Report], Trace]] = {
    "random search": lambda *arguments: random_search(*arguments)[0],
    "TPE": parzen,
    "Hyperband": hyperband,
    "PBT": population_based,
}
