"""Twelve tables evaluated in advance: every searcher without gradients, against Optuna's.

Two-layer networks on four regressions (HPOLib, nine hyperparameters) and networks on eight
classifications (HPOBench, five), all configurations trained beforehand (Klein & Hutter 2019), so
that searchers are compared in seconds and on the truth. A trial sees one training drawn at
random; a searcher is judged by the mean over the trainings of the best configuration that it has
evaluated, as the regret `(f - best) / (median - best)`, averaged over the tables, and how robust it
is by the percentiles of its ranks over tables and repetitions. A second suite, on which nothing was
tuned: the three tables of NAS-Bench-201 (Dong & Yang 2020), six operations each.

The tables also tell which hyperparameter matters, by functional ANOVA of the logarithm of the loss
over the whole grid; the paper finds the initial learning rate first. `strategies.importance` is
asked the same of a hundred random trials. The packaged tables have no learning curves: Hyperband
and its like are compared on those of `experiments.anytime`.

Each search is kept in `searches.jsonl` as soon as it is done, and `--resume` takes those that are
there already. Optuna's Gaussian process needs PyTorch and half a second for a suggestion: it has
its own, smaller number of repetitions, and none where PyTorch is not installed.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from experiments.data.hpo_tables import HPOBENCH, HPOLIB, NASBENCH, HpoTable, hpo_table
from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.harness.optuna_search import available, optuna_search
from strategies.importance import importance
from strategies.ledger import Ledger
from strategies.observation import Observation
from strategies.searchers.base import Searcher
from strategies.searchers.bayes import BayesSearcher
from strategies.searchers.evolution import EvolutionSearcher
from strategies.searchers.random import RandomSearcher
from strategies.searchers.sobol import SobolSearcher

Search = Callable[[HpoTable, int, int], list[float]]
Key = tuple[str, str, int, int]


def _full(options: object) -> bool:
    """Whether the run is the comparison that the bounds are of, or its small version."""
    if getattr(options, "quick", False):
        return True
    trials, tables = getattr(options, "trials", 0), getattr(options, "tables", 0)
    return trials >= 100 and tables >= 12 and getattr(options, "seeds", 0) >= 20


def ours(kind: type[Searcher]) -> Search:
    """Regrets of the configurations that one of our searchers evaluates."""

    def search(table: HpoTable, seed: int, trials: int) -> list[float]:
        ledger = Ledger(kind(table.space, seed=seed))
        rng, regrets = np.random.default_rng(seed), []
        for _ in range(trials):
            suggestion = ledger.ask()
            value = table.evaluate(suggestion.config, rng)
            ledger.tell(Observation(suggestion.config, value, number=suggestion.number))
            regrets.append(table.regret(suggestion.config))
        return regrets

    return search


def optuna(sampler: str) -> Search:
    """Regrets of the configurations that one of Optuna's samplers evaluates."""

    def search(table: HpoTable, seed: int, trials: int) -> list[float]:
        rng, regrets = np.random.default_rng(seed), []

        def evaluate(config: dict) -> float:
            regrets.append(table.regret(config))
            return table.evaluate(config, rng)

        optuna_search(sampler, table.space, evaluate, trials, seed=seed)
        return regrets

    return search


GP = "GP (Optuna)"
SEARCHERS: dict[str, Search] = {
    "random": ours(RandomSearcher),
    "Sobol": ours(SobolSearcher),
    "evolution": ours(EvolutionSearcher),
    "TPE (Optuna)": optuna("TPE"),
    GP: optuna("GP"),
    "bayes": ours(BayesSearcher),
}


def kept(path: Path) -> dict[Key, list[float]]:
    """The searches of an earlier run; a last line that was not finished is left out."""
    found: dict[Key, list[float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            *key, regrets = json.loads(line)
        except ValueError:
            continue
        found[tuple(key)] = regrets  # type: ignore[index]
    return found


@experiment(
    paper="Klein & Hutter 2019, arXiv:1905.04970",
    options=[
        Option("trials", 100, quick=30, help="evaluations of each search"),
        Option("seeds", 20, quick=2, help="repetitions"),
        Option("gp_seeds", 2, quick=0, help="repetitions of Optuna's Gaussian process"),
        Option("tables", 12, quick=2, help="how many of the twelve tables"),
        Option("nas", 3, quick=1, help="how many of the three tables of NAS-Bench-201"),
        Option("resume", False, help="take the searches that the output folder already has"),
    ],
    claims=[
        Claim("half", "bayes: mean regret after half of 100 trials", 0.045, quick=0.2, when=_full),
        Claim("all", "bayes: mean regret after 100 trials", 0.032, quick=0.1, when=_full),
        Claim("rank", "bayes: its mean rank less the best other's", 0.0, quick=0.75, when=_full),
        Claim("random", "bayes ends below random: ratio of the mean regrets", at_most=1.0),
        Claim(
            "robust",
            "bayes: nine tenths of its ranks are below this, less the same of the best other",
            at_most=0.0,
            quick=2.0,
            when=_full,
        ),
        # Two searches of 30 trials on one table are a matter of luck.
        Claim("nas", "NAS-Bench-201: bayes's mean regret over random's", at_most=1.0, quick=1.5),
        Claim(
            "nas_rank",
            "NAS-Bench-201: bayes's mean rank less the best other's",
            at_most=0.0,
            quick=2.0,
            when=_full,
        ),
        Claim(
            "order",
            "share of the HPOLib tables where the initial learning rate explains most of the loss",
            at_least=1.0,
        ),
        Claim(
            "estimated",
            "the same as estimated from 100 random trials",
            at_least=0.75,
            quick=0.5,
        ),
    ],
)
def run(context: Context) -> None:
    """Search every table with every searcher and seed."""
    options = context.options
    names = [*HPOLIB, *HPOBENCH][: options.tables]
    cells = list(NASBENCH[: options.nas])
    seeds = dict.fromkeys(SEARCHERS, options.seeds)
    seeds[GP] = min(options.gp_seeds, options.seeds) if available("GP") else 0
    if options.gp_seeds and not seeds[GP]:
        context.say("PyTorch is not installed: Optuna's Gaussian process is left out.")
    path = options.out / "searches.jsonl"
    done = kept(path) if options.resume else {}
    if not options.resume:
        path.unlink(missing_ok=True)
    best = {
        name: np.empty((len(names), count, options.trials))
        for name, count in seeds.items()
        if count
    }
    # Of the second suite all but the Gaussian process of Optuna, which has few repetitions.
    second = {
        name: np.empty((len(cells), options.seeds, options.trials))
        for name in SEARCHERS
        if name != GP
    }
    # Seeds first: an interrupted run then has whole repetitions.
    total = len(names) * sum(seeds.values()) + len(cells) * len(second) * options.seeds
    with context.progress("searches", total=total) as bar:
        for seed in range(options.seeds):
            for table in [*names, *cells]:
                into, row = (best, names) if table in names else (second, cells)
                for searcher, found in into.items():
                    if seed >= found.shape[1]:
                        continue
                    key = (table, searcher, options.seed + seed, options.trials)
                    if key not in done:
                        search = SEARCHERS[searcher]
                        done[key] = search(hpo_table(table), options.seed + seed, options.trials)
                        with path.open("a", encoding="utf-8") as file:
                            file.write(json.dumps([*key, done[key]]) + "\n")
                    regrets = np.minimum.accumulate(done[key])
                    found[row.index(table), seed] = regrets
                    bar.advance(incumbent=regrets[-1])

    # Mean over tables, bands of 95 % confidence over seeds.
    curves = {}
    for searcher, regret in best.items():
        by_seed = regret.mean(axis=0)
        mean = by_seed.mean(axis=0)
        half = 1.96 * by_seed.std(axis=0, ddof=min(1, len(by_seed) - 1)) / np.sqrt(len(by_seed))
        curves[searcher] = Curve(np.arange(1, options.trials + 1), mean, mean - half, mean + half)
    context.plot("regret", curves, x="evaluations", y="mean normalised regret", y_scale="log")

    # Ranks need the same repetitions of all: without the Gaussian process, and with it.
    ranks = mean_ranks({name: regret for name, regret in best.items() if name != GP})
    if GP in best:
        few = mean_ranks({name: regret[:, : seeds[GP]] for name, regret in best.items()})
    marks = [n for n in (25, 50, 100) if n <= options.trials] or [options.trials]
    context.table(
        "regret",
        [
            {
                "searcher": searcher,
                "repetitions": seeds[searcher],
                **{f"after {n}": float(regret[..., n - 1].mean()) for n in marks},
                "± (95 %)": float(curves[searcher].high[-1] - curves[searcher].y[-1]),  # type: ignore[index]
                "mean rank": ranks.get(searcher, float("nan")),
                **({f"rank, {seeds[GP]} repetitions": few[searcher]} if GP in best else {}),
            }
            for searcher, regret in best.items()
        ],
    )
    context.table(
        f"regret after {options.trials}, by table",
        [
            {"table": name, **{s: float(regret[i, :, -1].mean()) for s, regret in best.items()}}
            for i, name in enumerate(names)
        ],
    )
    if cells:
        second_suite(context, second)
    what_matters(context, [name for name in names if name in HPOLIB], options.seed)
    same = {name: regret for name, regret in best.items() if name != GP}
    high = percentiles(context, same)
    final = {searcher: float(regret[..., -1].mean()) for searcher, regret in best.items()}
    context.measure("random", final["bayes"] / final["random"])
    if _full(options):
        context.measure("half", float(best["bayes"][..., options.trials // 2 - 1].mean()))
        context.measure("all", final["bayes"])
        context.measure("robust", behind(high))
        context.measure("rank", max(behind(r) for r in ([ranks, few] if GP in best else [ranks])))


def second_suite(context: Context, best: dict[str, np.ndarray]) -> None:
    """What the searchers came to on tables that nothing was tuned on."""
    ranks = mean_ranks(best)
    final = {name: float(regret[..., -1].mean()) for name, regret in best.items()}
    context.table(
        "NAS-Bench-201",
        [{"searcher": name, "regret": final[name], "mean rank": ranks[name]} for name in best],
    )
    context.measure("nas", final["bayes"] / final["random"])
    if _full(context.options):
        context.measure("nas_rank", behind(ranks))


def what_matters(context: Context, names: list[str], seed: int) -> None:
    """Main effects over the whole grid, and as estimated from a hundred trials."""
    rows = []
    for name in names:
        table = hpo_table(name)
        rng = np.random.default_rng(seed)
        configs = [table.space.sample(rng) for _ in range(100)]
        told = [Observation(c, float(np.log(table.evaluate(c, rng)))) for c in configs]
        shares = importance(told, table.space, seed=seed)
        for path, share in main_effects(table).items():
            rows.append(
                {
                    "table": name,
                    "hyperparameter": path,
                    "share": share,
                    "estimated": shares[path].share,
                }
            )
    context.table("what matters", rows)
    for claim, key in (("order", "share"), ("estimated", "estimated")):
        first = [
            max((row for row in rows if row["table"] == name), key=lambda row: row[key])
            for name in names
        ]
        found = [row["hyperparameter"] == "init_lr" for row in first]
        context.measure(claim, float(np.mean(found)))


def main_effects(table: HpoTable) -> dict[str, float]:
    """Share of the variance of the log loss that each hyperparameter explains by itself."""
    domains = table.space.domains
    grid = np.log(table.values.mean(axis=1)).reshape([int(d.count) for d in domains.values()])
    axes = range(grid.ndim)
    return {
        path: float(grid.mean(axis=tuple(a for a in axes if a != axis)).var() / grid.var())
        for axis, path in enumerate(domains)
    }


def percentiles(context: Context, best: dict[str, np.ndarray]) -> dict[str, float]:
    """Percentiles of the last ranks over tables and repetitions; the ninetieth is returned."""
    ranks = rankdata(np.stack([regret[..., -1] for regret in best.values()]), axis=0)
    found = np.percentile(ranks.reshape(len(best), -1), [10, 25, 50, 75, 90], axis=1).T
    context.table(
        "percentiles of the ranks",
        [
            {
                "searcher": name,
                **dict(zip(("10 %", "25 %", "50 %", "75 %", "90 %"), row, strict=True)),
            }
            for name, row in zip(best, found.tolist(), strict=True)
        ],
    )
    return dict(zip(best, found[:, -1].tolist(), strict=True))


def mean_ranks(best: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean over tables and seeds of the rank of the last regret; ties share their ranks."""
    last = np.stack([regret[..., -1] for regret in best.values()])
    ranks = rankdata(last, axis=0).mean(axis=(1, 2))
    return dict(zip(best, ranks.tolist(), strict=True))


def behind(ranks: dict[str, float]) -> float:
    """How far the rank of `bayes` is above the best of the others; negative if it is below."""
    return ranks["bayes"] - min(rank for name, rank in ranks.items() if name != "bayes")


if __name__ == "__main__":
    raise SystemExit(run.main())
