"""What a user gets without choosing: the default searcher on thirty small tuning tasks.

Models of scikit-learn on the sets that it bundles, and penalties whose gradients are known in
closed form (`experiments.data.tuning`): 2 to 12 hyperparameters at a time, mixed kinds and
conditions. `minimize` is called without a searcher, and raced against random search and Optuna's
tree-structured Parzen estimator; seeds change the split of the data as well as the search.

*Behind beyond noise* is decided as follows. On a task, the differences to random search with the
same seed are tested against a mean of zero by Student's t, one-sided; the tasks of a budget are
tested together at 5 % (Holm 1979). With five seeds such a test sees large differences only. So all
tasks together are looked at, too: the share of searches that are won against random search, half of
a tie counting, with its standard error over tasks.

Each search is kept in `searches.jsonl` as soon as it is done, and `--resume` takes those that are
there already.
"""

import json
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, ttest_1samp

from experiments.data.tuning import TASKS, Tuning
from experiments.harness import Claim, Context, Curve, Option, experiment
from strategies import RandomSearcher, TPESearcher
from strategies.local import minimize
from strategies.searchers.base import Searcher

SEARCHERS: dict[str, type[Searcher] | None] = {
    "default": None,
    "random": RandomSearcher,
    "TPE": TPESearcher,
}
BUDGETS = (20, 50, 100)
#: Of the tests that the default is not worse than random search, all tasks of a budget together.
_LEVEL = 0.05
# One task or so for each kind: conditions, integers, noise, gradients.
QUICK = ("kernels:iris", "tree:wine", "descent:breast_cancer", "ridge-mixed:diabetes")

Runs = dict[str, dict[str, np.ndarray]]


def race(task: Tuning, kind: type[Searcher] | None, trials: int, seed: int) -> list[float]:
    """Best value so far after each trial."""
    searcher = None if kind is None else kind(task.space, seed=seed)
    result = minimize(task.evaluate, task.space, searcher=searcher, trials=trials, seed=seed)
    return [float(value) for value in np.nan_to_num(result.best_so_far(), nan=np.inf)]


def _kept(path: Path) -> dict[tuple[str, str, int], list[float]]:
    """The searches in a file."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["task"], row["searcher"], row["seed"]): row["best"] for row in rows}


def searched(context: Context, tasks: list[str]) -> Runs:
    """Best values so far: task -> searcher -> `(seeds, trials)`."""
    options = context.options
    path = options.out / "searches.jsonl"
    kept = _kept(path) if options.resume else {}
    runs: Runs = {}
    total = len(tasks) * len(SEARCHERS) * options.seeds
    with context.progress("searches", total=total) as bar, path.open("a") as file:
        for name in tasks:
            found: dict[str, list[list[float]]] = {key: [] for key in SEARCHERS}
            for seed in range(options.seed, options.seed + options.seeds):
                task = TASKS[name](seed)
                for key, kind in SEARCHERS.items():
                    best = kept.get((name, key, seed), [])
                    if len(best) < options.trials:
                        best = race(task, kind, options.trials, seed)
                        row = {"task": name, "searcher": key, "seed": seed, "best": best}
                        file.write(json.dumps(row) + "\n")
                        file.flush()
                    found[key].append(best[: options.trials])
                    bar.advance(incumbent=best[-1])
            runs[name] = {key: np.array(best) for key, best in found.items()}
    return runs


def unlikely(ours: np.ndarray, rival: np.ndarray) -> float:
    """Probability of such differences, seed by seed, if ours were not worse in the mean."""
    gaps = ours - rival
    if np.ptp(gaps) == 0:
        return 0.0 if gaps[0] > 0 else 1.0
    return float(ttest_1samp(gaps, 0.0, alternative="greater").pvalue)


def behind(probabilities: dict[str, float], level: float = _LEVEL) -> set[str]:
    """The names whose hypothesis falls when all are tested at one level (Holm 1979)."""
    fallen: set[str] = set()
    for name in sorted(probabilities, key=probabilities.__getitem__):
        if probabilities[name] > level / (len(probabilities) - len(fallen)):
            break
        fallen.add(name)
    return fallen


def won(ours: np.ndarray, rival: np.ndarray) -> float:
    """Share of searches with the smaller value; half of a tie counts."""
    return float(np.mean(0.5 * (ours <= rival) + 0.5 * (ours < rival)))


@experiment(
    paper="ours",
    x64=False,
    options=[
        Option("tasks", "all", quick=",".join(QUICK), help="names, comma-separated, or 'all'"),
        Option("trials", 100, quick=20, help="trials of a search"),
        Option("seeds", 5, quick=3, help="repetitions, with other splits of the data"),
        Option("resume", False, help="take finished searches from the output folder"),
    ],
    claims=[
        Claim(
            "random",
            "tasks on which the default is behind random search beyond noise, at any budget",
            at_most=0,
        ),
        Claim(
            "won",
            "share of searches won against random search, less two standard errors over tasks, at "
            "the budget at which it is least",
            at_least=0.5,
            quick=0.25,
        ),
        Claim(
            "tpe",
            "mean rank of the default less that of TPE, at the budget at which it is worst",
            at_most=0.0,
        ),
    ],
)
def run(context: Context) -> None:
    """Race the three searchers on all tasks."""
    options = context.options
    tasks = list(TASKS) if options.tasks == "all" else options.tasks.split(",")
    if unknown := set(tasks) - set(TASKS):
        raise ValueError(f"'tasks': expected names among {list(TASKS)}, received {unknown}")
    runs = searched(context, tasks)
    budgets = [budget for budget in BUDGETS if budget <= options.trials] or [options.trials]
    ranks: dict[int, np.ndarray] = {}
    lost: set[str] = set()
    rows, shares = [], []
    for budget in budgets:
        at = {t: {key: runs[t][key][:, budget - 1] for key in SEARCHERS} for t in tasks}
        values = np.array([[at[t][key] for key in SEARCHERS] for t in tasks])
        ranks[budget] = rankdata(values, axis=1).mean(axis=(0, 2))
        chances = {t: unlikely(at[t]["default"], at[t]["random"]) for t in tasks}
        worse = [t for t in tasks if np.mean(at[t]["default"] - at[t]["random"]) > 0]
        lost |= behind(chances)
        wins = np.array([won(at[t]["default"], at[t]["random"]) for t in tasks])
        error = float(wins.std(ddof=1) / np.sqrt(len(wins))) if len(wins) > 1 else 0.0
        shares.append(float(wins.mean()) - 2 * error)
        least = min(tasks, key=chances.__getitem__)
        rows.append(
            {
                "trials": budget,
                "searches won": float(wins.mean()),
                "standard error": error,
                "tasks with the worse mean": len(worse),
                "least likely": least,
                "p": chances[least],
            }
        )
    context.table("against random search", rows)
    context.table(
        "mean rank",
        [
            {"searcher": key, **{f"after {b}": float(ranks[b][i]) for b in budgets}}
            for i, key in enumerate(SEARCHERS)
        ],
    )
    context.table(
        "mean of the best value",
        [
            {
                "task": name,
                **{
                    f"{key}, {budget}": float(runs[name][key][:, budget - 1].mean())
                    for budget in budgets
                    for key in SEARCHERS
                },
            }
            for name in tasks
        ],
    )
    if lost:
        context.say(f"Behind random search beyond noise: {', '.join(sorted(lost))}.")
    # Mean rank over tasks and seeds after every trial.
    every = np.array([[runs[name][key] for key in SEARCHERS] for name in tasks])
    by_trial = rankdata(every, axis=1).mean(axis=(0, 2))
    steps = np.arange(1, options.trials + 1)
    curves = {key: Curve(steps, by_trial[i]) for i, key in enumerate(SEARCHERS)}
    context.plot("rank", curves, x="trials", y="mean rank")
    names = list(SEARCHERS)
    ours, rival = names.index("default"), names.index("TPE")
    context.measure("random", len(lost))
    context.measure("won", min(shares))
    context.measure("tpe", max(float(ranks[b][ours] - ranks[b][rival]) for b in budgets))


if __name__ == "__main__":
    raise SystemExit(run.main())
