"""Tuning one task after another: what the process learns of contexts, against beginning anew.

Forty penalised regressions, ridge and logistic, differ in what is known beforehand: the number of
examples, the noise, the condition of the features. A searcher that sees these contexts proposes a
penalty for each new task, three trials a task. Its first proposal, made before anything of the task
was evaluated, is compared with the best penalty for all of the first half of the tasks; its three
trials with a search of three for each task by itself, and with one that sees all tasks but no
contexts.

The setting is that of METALIC (tuning over a sequence of instances by a Gaussian-process bandit
with their features as context); data and bounds are ours. Regret is in units of the distance
between the best and the worst penalty of a task.
"""

from dataclasses import dataclass

import numpy as np

from experiments.data.ridge_tasks import CONTEXT, GRID, SPACE, Family, Task, tasks
from experiments.harness import Claim, Context, Curve, Option, experiment
from strategies.ledger import Ledger
from strategies.observation import Observation
from strategies.searchers.bayes import BayesSearcher

#: Trials of each task.
_TRIALS = 3


@dataclass(frozen=True)
class Runs:
    """What a search over all tasks has found.

    - `regret`: `(tasks, trials)`, of the trial with the least validation loss so far.
    - `first`: `(tasks,)`, the first proposals.
    """

    regret: np.ndarray
    first: np.ndarray


def searched(chosen: list[Task], seed: int, *, context: bool, anew: bool) -> Runs:
    """Every task in turn.

    **Arguments:**

    - `context`: the searcher sees the contexts.
    - `anew`: it knows nothing of the tasks before.
    """
    regrets, first = np.empty((len(chosen), _TRIALS)), np.empty(len(chosen))
    ledger = Ledger(BayesSearcher(SPACE, seed=seed, context=CONTEXT if context else None))
    for i, task in enumerate(chosen):
        if anew:
            ledger = Ledger(BayesSearcher(SPACE, seed=1000 * seed + i))
        best = np.inf
        for trial in range(_TRIALS):
            asked = ledger.ask(task.context) if context else ledger.ask()
            penalty, seen = asked.config["l2"], task.seen(asked.config)
            ledger.tell(Observation(asked.config, seen, number=asked.number))
            if trial == 0:
                first[i] = penalty
            regrets[i, trial] = task.regret(penalty) if seen < best else regrets[i, trial - 1]
            best = min(best, seen)
    return Runs(regrets, first)


def fixed(known: list[Task]) -> float:
    """The penalty that is best for all of these tasks, by their true regrets."""
    return float(min(GRID, key=lambda l2: sum(task.regret(l2) for task in known)))


@experiment(
    paper="Krause & Ong 2011 (contextual Gaussian-process bandits); the setting of METALIC",
    options=[
        Option("tasks", 40, quick=12, help="tasks of each family"),
        Option("seeds", 3, quick=1, help="repetitions"),
        Option("families", "ridge,logistic", quick="ridge", help="what is fitted"),
    ],
    claims=[
        Claim(
            "first",
            "second half of the tasks: regret of the first proposal, over that of the best fixed "
            "penalty of the first half",
            at_most=0.5,
            quick=1.0,
        ),
        Claim(
            "sequence",
            "all tasks: regret after three trials, over that of a search of three for each",
            at_most=0.6,
            quick=2.0,
        ),
        Claim(
            "contexts",
            "all tasks: regret after three trials, over that of a search that sees no contexts",
            at_most=0.8,
            quick=2.0,
        ),
    ],
)
def run(context: Context) -> None:
    """Every family and seed by every searcher."""
    options = context.options
    families: list[Family] = options.families.split(",")
    half = options.tasks // 2
    kinds = {
        "with contexts": {"context": True, "anew": False},
        "without contexts": {"context": False, "anew": False},
        "each task anew": {"context": False, "anew": True},
    }
    runs: dict[str, list[Runs]] = {name: [] for name in kinds}
    fixed_regret, rows = [], []
    pairs: list[tuple[float, float]] = []
    with context.progress("searches", total=len(families) * options.seeds * len(kinds)) as bar:
        for family in families:
            of_family: dict[str, list[Runs]] = {name: [] for name in kinds}
            constants = []
            for seed in range(options.seed, options.seed + options.seeds):
                chosen = tasks(family, options.tasks, seed)
                constant = fixed(chosen[:half])
                constants.append(np.mean([task.regret(constant) for task in chosen[half:]]))
                for name, kind in kinds.items():
                    of_family[name].append(searched(chosen, seed, **kind))
                    bar.advance()
                made = of_family["with contexts"][-1].first[half:]
                pairs += [(task.best, l2) for task, l2 in zip(chosen[half:], made, strict=True)]
            fixed_regret += constants
            for name, found in of_family.items():
                runs[name] += found
                regret = np.mean([each.regret for each in found], axis=0)
                rows.append(
                    {
                        "fitted": family,
                        "search": name,
                        "first proposal, second half": float(regret[half:, 0].mean()),
                        "after three trials": float(regret[:, -1].mean()),
                    }
                )
            rows.append(
                {
                    "fitted": family,
                    "search": "best fixed penalty",
                    "first proposal, second half": float(np.mean(constants)),
                    "after three trials": None,
                }
            )
    context.table("mean regret", rows)
    last = {name: np.mean([each.regret[:, -1] for each in found]) for name, found in runs.items()}
    first = np.mean([each.regret[half:, 0] for each in runs["with contexts"]])
    context.measure("first", float(first / np.mean(fixed_regret)))
    context.measure("sequence", float(last["with contexts"] / last["each task anew"]))
    context.measure("contexts", float(last["with contexts"] / last["without contexts"]))
    context.plot(
        "regret",
        {
            name: Curve.of_runs(
                np.stack(
                    [
                        np.cumsum(each.regret[:, -1]) / np.arange(1, options.tasks + 1)
                        for each in found
                    ]
                )
            )
            for name, found in runs.items()
        },
        x="tasks",
        y="mean regret after three trials each",
        y_scale="log",
    )
    with context.figure("first proposals") as figure:
        axes = figure.subplots()
        best, proposed = np.array(pairs).T
        axes.plot(best, proposed, "o", color="#0072B2", alpha=0.6)
        axes.plot([GRID[0], GRID[-1]], [GRID[0], GRID[-1]], "k:", linewidth=1)
        axes.set(xlabel="best penalty of the task", ylabel="first proposal", xscale="log",
                 yscale="log")  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(run.main())
