"""Optuna scripts of thirty trials, switched by one line.

Twelve define-by-run objectives with parameters under `if` (`experiments.data.scripts`), each run as
its author would: no space is declared, and the sampler is all that changes. `HypergradSampler()` is
raced against Optuna's tree-structured Parzen estimator (TPE, its default) and random search. Seeds
change the folds of the data as well as the search.

Then a study is switched on its way: the trials of TPE are taken over, and go on with
`HypergradSampler()` or with TPE.

Each search is kept in `searches.jsonl` as soon as it is done, and `--resume` takes those that are
there already.
"""

import json
from collections.abc import Callable

import numpy as np
import optuna
from scipy.stats import rankdata

from experiments.data.scripts import SCRIPTS, Script
from experiments.defaults import behind, unlikely, won
from experiments.harness import Claim, Context, Curve, Option, experiment
from strategies.optuna import HypergradSampler

Make = Callable[[int], optuna.samplers.BaseSampler]

OURS, TPE, RANDOM, SWITCHED = "HypergradSampler", "TPE", "random", "switched to HypergradSampler"
SAMPLERS: dict[str, Make] = {
    OURS: lambda seed: HypergradSampler(seed=seed),
    TPE: lambda seed: optuna.samplers.TPESampler(seed=seed),
    RANDOM: lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
# With parameters under `if`, in milliseconds.
QUICK = ("kernels", "descent", "linear")


def race(script: Script, seed: int, trials: int, further: int) -> dict[str, list[float]]:
    """Best value so far after each trial, by sampler; TPE's goes on, and is switched."""
    studies = {name: optuna.create_study(sampler=make(seed)) for name, make in SAMPLERS.items()}
    for study in studies.values():
        study.optimize(lambda trial: script(trial, seed), n_trials=trials)
    studies[SWITCHED] = optuna.create_study(sampler=SAMPLERS[OURS](seed))
    studies[SWITCHED].add_trials(studies[TPE].trials)
    for name in (SWITCHED, TPE):
        studies[name].optimize(lambda trial: script(trial, seed), n_trials=further)
    return {
        name: np.minimum.accumulate([trial.value for trial in study.trials]).tolist()
        for name, study in studies.items()
    }


def searched(context: Context, scripts: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Best values so far: script -> sampler -> `(seeds, trials)`."""
    options = context.options
    path = options.out / "searches.jsonl"
    kept: dict[tuple[str, int], dict[str, list[float]]] = {}
    if options.resume and path.exists():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        kept = {(row["script"], row["seed"]): row["best"] for row in rows}
    found: dict[str, dict[str, np.ndarray]] = {}
    total = len(scripts) * options.seeds
    with context.progress("scripts", total=total) as bar, path.open("a") as file:
        for name in scripts:
            runs = []
            for seed in range(options.seed, options.seed + options.seeds):
                best = kept.get((name, seed))
                if best is None:
                    best = race(SCRIPTS[name], seed, options.trials, options.further)
                    row = {"script": name, "seed": seed, "best": best}
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                runs.append(best)
                bar.advance(incumbent=best[OURS][-1])
            found[name] = {key: np.array([best[key] for best in runs]) for key in runs[0]}
    return found


@experiment(
    paper="ours",
    x64=False,
    options=[
        Option("scripts", "all", quick=",".join(QUICK), help="names, comma-separated, or 'all'"),
        Option("trials", 30, quick=15, help="trials of a study"),
        Option("further", 20, quick=5, help="trials after the switch"),
        Option("seeds", 10, quick=2, help="repetitions, with other folds"),
        Option("resume", False, help="take finished searches from the output folder"),
    ],
    claims=[
        Claim("tpe", "mean rank of ours less that of TPE", at_most=0.0, quick=0.75),
        Claim("random", "scripts on which ours is behind random search beyond noise", at_most=0),
        Claim(
            "won",
            "share of studies won against random search, less two standard errors over scripts",
            at_least=0.5,
            quick=0.2,
        ),
        Claim(
            "switched",
            "share of studies whose further trials find more when switched than with TPE, half of "
            "a tie counting",
            at_least=0.5,
            quick=0.15,
        ),
    ],
)
def run(context: Context) -> None:
    """Race the samplers on all scripts, then switch those of TPE."""
    options = context.options
    scripts = list(SCRIPTS) if options.scripts == "all" else options.scripts.split(",")
    if unknown := set(scripts) - set(SCRIPTS):
        raise ValueError(f"'scripts': expected names among {list(SCRIPTS)}, received {unknown}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = searched(context, scripts)
    raced = {
        name: {key: best[key][:, : options.trials] for key in SAMPLERS}
        for name, best in found.items()
    }
    # Script, sampler, seed, trial.
    every = np.array(
        [[best[key][:, : options.trials] for key in SAMPLERS] for best in found.values()]
    )
    ranks = rankdata(every, axis=1)
    rows, after, wins, chances, continued = [], [], [], {}, []
    for name, rank in zip(scripts, ranks[..., -1].mean(axis=2), strict=True):
        last = {key: best[:, -1] for key, best in raced[name].items()}
        wins.append(won(last[OURS], last[RANDOM]))
        chances[name] = unlikely(last[OURS], last[RANDOM])
        switched, stayed = found[name][SWITCHED][:, -1], found[name][TPE][:, -1]
        continued.append(won(switched, stayed))
        rows.append(
            {
                "script": name,
                **{key: float(last[key].mean()) for key in SAMPLERS},
                **{f"rank of {key}": float(r) for key, r in zip(SAMPLERS, rank, strict=True)},
            }
        )
        after.append(
            {
                "script": name,
                "before": float(last[TPE].mean()),
                "TPE": float(stayed.mean()),
                "switched": float(switched.mean()),
                "won by the switch": continued[-1],
            }
        )
    context.table("mean of the best value", rows)
    context.table("after the switch", after)
    mean_rank = ranks.mean(axis=(0, 2))
    ends = {key: float(rank) for key, rank in zip(SAMPLERS, mean_rank[:, -1], strict=True)}
    context.table("mean rank", [{"sampler": key, "rank": rank} for key, rank in ends.items()])
    steps = np.arange(1, options.trials + 1)
    curves = {key: Curve(steps, rank) for key, rank in zip(SAMPLERS, mean_rank, strict=True)}
    context.plot("rank", curves, x="trials", y="mean rank")
    error = float(np.std(wins, ddof=1) / np.sqrt(len(wins))) if len(wins) > 1 else 0.0
    context.measure("tpe", ends[OURS] - ends[TPE])
    context.measure("random", len(behind(chances)))
    context.measure("won", float(np.mean(wins)) - 2 * error)
    context.measure("switched", float(np.mean(continued)))


if __name__ == "__main__":
    raise SystemExit(run.main())
