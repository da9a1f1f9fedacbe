"""Architectures as trees of decisions: tree search and a model of n-grams against random search.

DeepArchitect (Negrinho & Gordon 2017) describes architectures by decisions that open further ones,
and searches them by Monte-Carlo tree search, with or without bisection of ordered decisions, and by
ridge regression on n-grams of the decisions (SMBO). The space here: networks of one to four hidden
layers on digits, each with its own width, an activation, weight decay, batch size, and one of two
optimizers with its own hyperparameters. Judged by the smallest validation error after 64 trainings,
as in the paper, in the mean over splits of the data and initial weights.

The same searchers then search the twelve tables of `experiments.tabular`, where the truth is known:
there by the regret of the configuration that a search takes for its best.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from experiments.data import tabular
from experiments.data.hpo_tables import HPOBENCH, HPOLIB, hpo_table
from experiments.harness import Claim, Context, Curve, Option, experiment
from strategies import (
    BayesSearcher,
    Categorical,
    Choice,
    EvolutionSearcher,
    Float,
    Int,
    Ledger,
    NGramSearcher,
    Observation,
    Ordinal,
    RandomSearcher,
    Searcher,
    SearchSpace,
    TPESearcher,
    TreeSearcher,
)

RANDOM, MCTS, BISECTED, SMBO = "random", "MCTS", "MCTS with bisection", "SMBO on n-grams"
SEARCHERS: dict[str, Callable[..., Searcher]] = {
    RANDOM: RandomSearcher,
    MCTS: partial(TreeSearcher, bisection=False),
    BISECTED: TreeSearcher,
    SMBO: NGramSearcher,
    "evolution": EvolutionSearcher,
    "TPE (Optuna)": TPESearcher,
    "bayes": BayesSearcher,
}
#: On the tables those of the paper only: the others are compared there in `experiments.tabular`.
ON_TABLES = (RANDOM, MCTS, BISECTED, SMBO)
DEEPEST, EPOCHS = 4, 6
Config = dict[str, Any]
Evaluate = Callable[[Config], float]


def search_space() -> SearchSpace:
    """Networks of up to `DEEPEST` hidden layers, and how they are trained."""
    layers = {
        str(depth): {f"width{i}": Int(4, 128, log=True) for i in range(depth)}
        for depth in range(1, DEEPEST + 1)
    }
    return SearchSpace(
        {
            "optimizer": Choice(
                {
                    "momentum": {
                        "rate": Float(1e-4, 1.0, log=True),
                        "momentum": Float(0.0, 0.98),
                        "nesterov": Categorical([False, True]),
                    },
                    "adam": {
                        "rate": Float(1e-5, 1e-1, log=True),
                        "memory": Float(2.0, 1000.0, log=True),
                    },
                }
            ),
            "activation": Categorical(["relu", "tanh", "logistic"]),
            "layers": Choice(layers),
            "decay": Float(1e-5, 10.0, log=True),
            "batch": Ordinal([20, 40, 80, 160]),
        }
    )


def network(seed: int) -> Evaluate:
    """Validation error (share) of a training on one split of the digits."""
    from sklearn.neural_network import MLPClassifier

    data = tabular("digits", seed=seed, fractions=(0.25, 0.4))

    def train(config: Config) -> float:
        kind = config["optimizer"]["kind"]
        own = config["optimizer"][kind]
        if kind == "adam":
            optimizer = {"beta_2": 1 - 1 / own["memory"]}
        else:
            optimizer = {"momentum": own["momentum"], "nesterovs_momentum": own["nesterov"]}
        model = MLPClassifier(
            tuple(config["layers"][config["layers"]["kind"]].values()),
            activation=config["activation"],
            solver="adam" if kind == "adam" else "sgd",
            alpha=config["decay"],
            batch_size=config["batch"],
            learning_rate_init=own["rate"],
            max_iter=EPOCHS,
            random_state=seed,
            **optimizer,
        )
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # not converged: few epochs are the task
            try:
                model.fit(data.train.x / 16, data.train.y)
            except ValueError:  # weights that are no longer finite
                return 1.0
            return 1.0 - float(model.score(data.validation.x / 16, data.validation.y))

    return train


def searched(searcher: Searcher, evaluate: Evaluate, trials: int) -> list[tuple[float, Config]]:
    """Values and configurations of the trials of a search, in order."""
    ledger, seen = Ledger(searcher), []
    for _ in range(trials):
        asked = ledger.ask()
        value = evaluate(asked.config)
        ledger.tell(Observation(asked.config, value, number=asked.number))
        seen.append((value, asked.config))
    return seen


@experiment(
    paper="Negrinho & Gordon 2017, arXiv:1704.08792",
    options=[
        Option("trials", 64, quick=20, help="trainings of each search"),
        Option("seeds", 10, quick=1, help="splits of the data"),
        Option("tables", 12, quick=1, help="how many of the twelve tables"),
        Option("repetitions", 4, quick=1, help="of the search of a table"),
    ],
    claims=[
        Claim(
            "mcts",
            "networks: error found by MCTS with bisection over random search's, mean of the seeds",
            at_most=1.0,
            # One search of 20 trainings is a matter of luck, here and below.
            quick=1.6,
        ),
        Claim("smbo", "the same of SMBO on n-grams", at_most=1.0, quick=1.6),
        Claim("bisection", "the same of MCTS with bisection over plain MCTS's", 1.0, quick=1.6),
        Claim(
            "mcts_tables",
            "twelve tables: regret of MCTS with bisection over random search's, mean of the tables",
            at_most=1.0,
            quick=2.0,
        ),
        Claim("smbo_tables", "the same of SMBO on n-grams", at_most=1.0, quick=2.0),
    ],
)
def run(context: Context) -> None:
    """Search networks, then tables."""
    options = context.options
    seeds = range(options.seed, options.seed + options.seeds)
    # The small tables first: the quick run then reads no large one.
    names = [*HPOBENCH, *HPOLIB][: options.tables]
    space = search_space()
    errors: dict[str, list[np.ndarray]] = {name: [] for name in SEARCHERS}
    again = range(options.seed, options.seed + options.repetitions)
    total = len(seeds) * len(SEARCHERS) + len(again) * len(names) * len(ON_TABLES)
    with context.progress("searches", total=total) as bar:
        for seed in seeds:
            evaluate = network(seed)
            for name, make in SEARCHERS.items():
                seen = searched(make(space, seed=seed), evaluate, options.trials)
                errors[name].append(np.minimum.accumulate([value for value, _ in seen]))
                bar.advance(incumbent=float(errors[name][-1][-1]))
        regrets: dict[str, np.ndarray] = {}
        for name in ON_TABLES:
            regrets[name] = np.empty((len(names), len(again)))
            for i, table in enumerate(map(hpo_table, names)):
                for j, seed in enumerate(again):
                    rng = np.random.default_rng(seed)
                    seen = searched(
                        SEARCHERS[name](table.space, seed=seed),
                        lambda config: table.evaluate(config, rng),  # noqa: B023
                        options.trials,
                    )
                    regrets[name][i, j] = table.regret(min(seen, key=lambda t: t[0])[1])
                    bar.advance()

    runs = {name: np.stack(found) for name, found in errors.items()}
    context.plot(
        "searches",
        {name: Curve.of_runs(found) for name, found in runs.items()},
        x="trainings",
        y="smallest validation error",
        y_scale="log",
    )
    last = {name: float(found[:, -1].mean()) for name, found in runs.items()}
    wins = {name: int((found[:, -1] < runs[RANDOM][:, -1]).sum()) for name, found in runs.items()}
    marks = sorted({min(n, options.trials) for n in (16, 32, options.trials)})
    context.table(
        "networks",
        [
            {
                "searcher": name,
                **{f"error after {n}": float(found[:, n - 1].mean()) for n in marks},
                "standard error": float(found[:, -1].std() / np.sqrt(len(found))),
                "better than random": f"{wins[name]} of {len(found)}",
            }
            for name, found in runs.items()
        ],
    )
    means = {name: float(found.mean()) for name, found in regrets.items()}
    by_table = [
        {"table": table, **{name: float(found[i].mean()) for name, found in regrets.items()}}
        for i, table in enumerate(names)
    ]
    context.table("regret on tables", [*by_table, {"table": "mean", **means}])
    context.measure("mcts", last[BISECTED] / last[RANDOM])
    context.measure("smbo", last[SMBO] / last[RANDOM])
    context.measure("bisection", last[BISECTED] / last[MCTS])
    context.measure("mcts_tables", means[BISECTED] / means[RANDOM])
    context.measure("smbo_tables", means[SMBO] / means[RANDOM])


if __name__ == "__main__":
    raise SystemExit(run.main())
