"""Search from a static log: what the worse half of old trials recommends, without a new one.

For each of the twelve tables of trained networks (Klein & Hutter 2019), 2,000 configurations are
drawn and the better half is thrown away: what is left is a log that never saw anything good. Each
method proposes 32 configurations from it at once, which are then judged by the table: the regret
`(f - best) / (median - best)` of the best of them, over that of the best of the log.

An ensemble of networks is compared with one that has a penalty on the surrogate's gradient norm,
and with the Gaussian process of `BayesSearcher`, from whose mean and lower confidence bound the
best 32 are taken.

Dao, Nguyen, Truong and Hoang, "Incorporating surrogate gradient norm to improve offline
optimization techniques" (NeurIPS 2024), report up to 9.6 % from the penalty.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import t as student

from experiments.data.hpo_tables import HPOBENCH, HPOLIB, HpoTable, hpo_table
from experiments.harness import Claim, Context, Curve, Option, experiment
from strategies.observation import Observation
from strategies.searchers.offline import OfflineSearcher
from strategies.surrogates.gaussian_process import Rows, fit
from strategies.surrogates.geometry import geometry
from strategies.surrogates.outputs import logarithmic

Proposer = Callable[[HpoTable, list[Observation], int, int], list[dict]]

OURS, FLAT = "ensemble", "ensemble, flat"
#: Weight of the penalty.
_SHARPNESS = 0.05
#: Rows of the log that the process is fitted to, and those of its posterior.
_FIT_ROWS, _ROWS = 160, 500
#: Configurations that its mean and bound are evaluated at.
_POOL = 6000


def logged(table: HpoTable, seed: int, count: int) -> list[Observation]:
    """The worse half of so many random trainings, by what was seen."""
    rng = np.random.default_rng([seed, 5])
    found = []
    for _ in range(count):
        config = table.space.sample(rng)
        found.append(Observation(config, table.evaluate(config, rng)))
    return sorted(found, key=lambda item: item.value or 0.0)[count // 2 :]


def ensemble(**options: float) -> Proposer:
    """Proposals of an `OfflineSearcher`."""

    def propose(table: HpoTable, log: list[Observation], seed: int, count: int) -> list[dict]:
        return OfflineSearcher(table.space, seed=seed, **options).proposals(log, count)

    return propose


def process(width: float) -> Proposer:
    """The lowest means less `width` deviations of a Gaussian process, at random places."""

    def propose(table: HpoTable, log: list[Observation], seed: int, count: int) -> list[dict]:
        space, rng = table.space, np.random.default_rng([seed, 6])
        groups, stretch = geometry(space)
        rows = rng.permutation(len(log))[:_ROWS]
        values, _ = logarithmic(np.array([log[i].value for i in rows], float))
        x = np.stack([space.encode(log[i].config) for i in rows]) * stretch
        made = fit(Rows.values(x), values, groups, fit_rows=np.arange(min(len(rows), _FIT_ROWS)))
        known = {repr(item.config) for item in log}
        pool = [space.sample(rng) for _ in range(_POOL)]
        mean, deviation = made.predict(np.stack([space.encode(one) for one in pool]) * stretch)
        order = np.argsort(mean - width * deviation, kind="stable")
        distinct = {repr(pool[i]): pool[i] for i in order}
        return [one for name, one in distinct.items() if name not in known][:count]

    return propose


METHODS: dict[str, Proposer] = {
    OURS: ensemble(),
    FLAT: ensemble(sharpness=_SHARPNESS),
    "process, mean": process(0.0),
    "process, bound": process(1.0),
}


@experiment(
    paper="Dao et al. 2024, arXiv:2503.04242; tables of Klein & Hutter 2019, arXiv:1905.04970",
    options=[
        Option("rows", 2000, quick=600, help="drawn configurations; the worse half is kept"),
        Option("proposals", 32, help="configurations that each method proposes"),
        Option("tables", 12, quick=1, help="how many of the twelve tables"),
        Option("seeds", 5, quick=1, help="repetitions"),
    ],
    claims=[
        Claim(
            "log",
            "regret of the best proposal over that of the best of the log, in the mean",
            at_most=0.5,
        ),
        Claim(
            "penalty",
            "regret of the best proposal with the penalty less that without, in the mean",
            at_most=0.0,
            quick=0.05,
        ),
        Claim(
            "process",
            "regret of the best proposal less that of the process's better choice, in the mean",
            at_most=0.02,
            quick=0.1,
        ),
    ],
)  # fmt: skip
def run(context: Context) -> None:
    """Every table, seed and method."""
    options = context.options
    names = [*HPOLIB, *HPOBENCH][: options.tables]
    best = {name: np.empty((len(names), options.seeds)) for name in ("log", *METHODS)}
    with context.progress("proposals", total=len(names) * options.seeds) as bar:
        for i, name in enumerate(names):
            table = hpo_table(name)
            for s in range(options.seeds):
                seed = options.seed + s
                log = logged(table, seed, options.rows)
                best["log"][i, s] = min(table.regret(dict(item.config)) for item in log)
                for method, propose in METHODS.items():
                    found = propose(table, log, seed, options.proposals)
                    best[method][i, s] = min(map(table.regret, found))
                bar.advance(incumbent=best[OURS][i, s])
    rows = [
        {"table": name, **{method: float(found[i].mean()) for method, found in best.items()}}
        for i, name in enumerate(names)
    ]
    rows.append({"table": "mean", **{m: float(found.mean()) for m, found in best.items()}})
    context.table("regret of the best of the log, and of the best proposal", rows)
    context.plot(
        "regret",
        {
            method: Curve(list(range(1, len(names) + 1)), found.mean(axis=1).tolist())
            for method, found in best.items()
        },
        x="table",
        y="regret of the best configuration",
        y_scale="log",
    )
    pairs = (best[FLAT] - best[OURS]).ravel()
    if len(pairs) > 1:
        half = student.ppf(0.975, len(pairs) - 1) * pairs.std(ddof=1) / np.sqrt(len(pairs))
        context.say(
            f"With the penalty less without: {pairs.mean():.4f}, 95 % interval "
            f"[{pairs.mean() - half:.4f}, {pairs.mean() + half:.4f}]"
        )
        context.table(
            "with the penalty less without, pairs of table and seed",
            [{"mean": float(pairs.mean()), "low": float(pairs.mean() - half),
              "high": float(pairs.mean() + half)}],
        )  # fmt: skip
    context.measure("log", float(best[OURS].mean() / best["log"].mean()))
    context.measure("penalty", float(pairs.mean()))
    rival = min(float(best[name].mean()) for name in ("process, mean", "process, bound"))
    context.measure("process", float(best[OURS].mean() - rival))


if __name__ == "__main__":
    raise SystemExit(run.main())
