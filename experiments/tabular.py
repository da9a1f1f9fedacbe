"""Twelve tables evaluated in advance: every searcher without gradients, against Optuna's.

Two-layer networks on four regressions (HPOLib, nine hyperparameters) and networks on eight
classifications (HPOBench, five), all configurations trained beforehand (Klein & Hutter 2019), so
that searchers are compared in seconds and on the truth. A trial sees one training drawn at
random; a searcher is judged by the mean over the trainings of the best configuration that it has
evaluated, as the regret `(f - best) / (median - best)`, averaged over the tables.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

from experiments.data.hpo_tables import HPOBENCH, HPOLIB, HpoTable, hpo_table
from experiments.harness import Claim, Context, Curve, Option, experiment
from strategies.observation import Observation
from strategies.searchers.base import Searcher
from strategies.searchers.bayes import BayesSearcher
from strategies.searchers.random import RandomSearcher

Search = Callable[[HpoTable, int, int], list[float]]


def _full(options: object) -> bool:
    trials, tables = getattr(options, "trials", 0), getattr(options, "tables", 0)
    return trials >= 100 and tables >= 12 and getattr(options, "seeds", 0) >= 20


def ours(kind: type[Searcher]) -> Search:
    """Regrets of the configurations that one of our searchers evaluates."""

    def search(table: HpoTable, seed: int, trials: int) -> list[float]:
        searcher, rng, regrets = kind(table.space, seed=seed), np.random.default_rng(seed), []
        for _ in range(trials):
            suggestion = searcher.ask()
            value = table.evaluate(suggestion.config, rng)
            searcher.tell(Observation(suggestion.config, value, number=suggestion.number))
            regrets.append(table.regret(suggestion.config))
        return regrets

    return search


def optuna_tpe(table: HpoTable, seed: int, trials: int) -> list[float]:
    """Regrets of the configurations that Optuna's default sampler evaluates."""
    import optuna

    from strategies.optuna import suggest

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rng, regrets = np.random.default_rng(seed), []
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    for _ in range(trials):
        trial = study.ask()
        config = suggest(trial, table.space)
        study.tell(trial, table.evaluate(config, rng))
        regrets.append(table.regret(config))
    return regrets


SEARCHERS: dict[str, Search] = {
    "random": ours(RandomSearcher),
    "TPE (Optuna)": optuna_tpe,
    "bayes": ours(BayesSearcher),
}


@experiment(
    paper="Klein & Hutter 2019, arXiv:1905.04970",
    options=[
        Option("trials", 100, quick=30, help="evaluations of each search"),
        Option("seeds", 20, quick=2, help="repetitions"),
        Option("tables", 12, quick=3, help="how many of the twelve tables"),
    ],
    claims=[
        Claim("bayes50", "bayes: mean regret after 50 trials", at_most=0.045, when=_full),
        Claim("bayes100", "bayes: mean regret after 100 trials", at_most=0.032, when=_full),
        Claim("rank", "bayes: its mean rank less the best other's", at_most=0.0, when=_full),
        Claim("random", "bayes ends below random: ratio of the mean regrets", at_most=1.0),
    ],
)
def run(context: Context) -> None:
    """Search every table with every searcher and seed."""
    options = context.options
    names = [*HPOLIB, *HPOBENCH][: options.tables]
    shape = (len(names), options.seeds, options.trials)
    best = {searcher: np.empty(shape) for searcher in SEARCHERS}
    with context.progress("searches", total=len(names) * options.seeds * len(SEARCHERS)) as bar:
        for i, name in enumerate(names):
            table = hpo_table(name)
            for seed in range(options.seeds):
                for searcher, search in SEARCHERS.items():
                    regrets = search(table, options.seed + seed, options.trials)
                    best[searcher][i, seed] = np.minimum.accumulate(regrets)
                    bar.advance(incumbent=best[searcher][i, seed, -1])

    # Mean over tables, bands of 95 % confidence over seeds.
    curves = {}
    for searcher, regret in best.items():
        by_seed = regret.mean(axis=0)
        mean = by_seed.mean(axis=0)
        half = 1.96 * by_seed.std(axis=0) / np.sqrt(options.seeds)
        curves[searcher] = Curve(np.arange(1, options.trials + 1), mean, mean - half, mean + half)
    context.plot("regret", curves, x="evaluations", y="mean normalised regret", y_scale="log")

    last = np.stack([regret[..., -1] for regret in best.values()])
    ranks = dict(zip(best, rankdata(last, axis=0).mean(axis=(1, 2)), strict=True))
    marks = [n for n in (25, 50, 100) if n <= options.trials] or [options.trials]
    context.table(
        "regret",
        [
            {
                "searcher": searcher,
                **{f"after {n}": float(regret[..., n - 1].mean()) for n in marks},
                "mean rank": float(ranks[searcher]),
            }
            for searcher, regret in best.items()
        ],
    )
    final = {searcher: float(regret[..., -1].mean()) for searcher, regret in best.items()}
    context.measure("random", final["bayes"] / final["random"])
    if _full(options):
        context.measure("bayes50", float(best["bayes"][..., 49].mean()))
        context.measure("bayes100", float(best["bayes"][..., 99].mean()))
        others = [rank for searcher, rank in ranks.items() if searcher != "bayes"]
        context.measure("rank", ranks["bayes"] - min(others))


if __name__ == "__main__":
    raise SystemExit(run.main())
