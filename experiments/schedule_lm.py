"""Schedules of a language model's training: learned layer by layer, searched, and tuned.

A byte-level model is trained on Python code by Adam. `learn_schedules` starts from Adam as it
usually is, with a cosine, and moves learning rate, both momenta and the weights of the batches over
time, for each of three layers, by derivatives through the whole training. Its rivals begin at the
same settings: TPE, CMA-ES and our `BayesSearcher` on fourteen knobs (rates of the layers, both
momenta, weight decay, lengths and end of the schedule; its shape, Nesterov's step, what is decayed,
clipping, steps by sign), without gradients; constant, cosine and trapezoid with a peak tuned on a
grid. All look at the same validation pieces. A metagradient is counted as four trainings.

What is tuned is tuned on one start and one order of batches. The table therefore has two columns of
held-out bits per byte: for that training, and for others (other start, other batches) with the same
settings. The model has 1.15 million parameters.

Maclaurin, Duvenaud & Adams 2015; Engstrom et al. 2025, arXiv:2503.13751.
"""

from time import process_time
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.byte_model import bits_per_byte, initial, layer_of, loss
from experiments.data.byte_training import (
    KNOBS,
    LAYERS,
    OVER_TIME,
    UNDER_ROOT,
    USUAL,
    Settings,
    from_schedules,
    of_config,
    shape_over,
    train,
)
from experiments.data.text import text_domains
from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.harness.optuna_search import available, optuna_search
from hypergrad import BilevelProblem
from hypergrad.outer.report import StepReport
from hypergrad.schedule import learn_schedules
from strategies import BayesSearcher
from strategies.local import minimize

PROBLEM = BilevelProblem(loss, loss)
DOMAIN, LENGTH = "code", 32
# Trainings that one metagradient costs, as a claim checks, if every step is stored; so many bytes
# are enough for that.
COST, MEMORY = 4, 5 * 2**30
OURS = "learned"
# Few steps, so that the first are long (0.4 is a factor of 1.5), with little memory of the last.
OUTER = optax.adam(lambda step: 0.4 / (1 + step / 4), b1=0.5)
SHAPES = {
    "constant": (0.0, 1.0, 1.0, "linear"),
    "cosine": (0.0, 1.0, 0.0, "cosine"),
    "trapezoid": (0.1, 0.4, 0.0, "linear"),
}


def adam(settings: dict) -> optax.GradientTransformation:
    """With a derivative also where a byte never occurs."""
    return optax.adam(
        settings["learning_rate"],
        b1=settings["momentum"],
        b2=settings["second_momentum"],
        eps_root=UNDER_ROOT,
    )


@experiment(
    paper="Maclaurin et al. 2015; Engstrom et al. 2025, arXiv:2503.13751",
    compiles=True,
    options=[
        Option("steps", 300, quick=20, help="steps of a training"),
        Option("batch", 8, help="pieces in a mini-batch"),
        Option("budgets", "10,30,100", quick="15", help="trainings' worth of compute"),
        Option("searches", 3, quick=1, help="the first so many searches"),
        Option("peaks", 10, quick=3, help="peaks on the grid, for each shape"),
        Option("others", 5, quick=2, help="other trainings with the same settings"),
        Option("held", 512, quick=256, help="validation pieces, and as many for the test"),
    ],
    claims=[
        Claim(
            "below_searches",
            "bits per byte at 30 trainings below the best search at its most, this training",
            at_least=0.0,
            quick=-0.4,
        ),
        Claim(
            "below_searches_elsewhere",
            "the same, mean over other trainings",
            at_least=0.0,
            quick=-0.4,
        ),
        Claim(
            "cost",
            f"processor time of a metagradient / of a training, of which it counts as {COST}",
            at_most=float(COST),
            quick=20.0,
        ),
        Claim(
            "below_tuned",
            "bits per byte at 30 trainings below the best tuned schedule, other trainings",
            at_least=0.0,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Tune on a grid, search, learn, compare."""
    options = context.options
    steps = options.steps
    budgets = [int(word) for word in options.budgets.split(",")]
    most = max(budgets)
    domain = text_domains(LENGTH, seed=options.seed, names=[DOMAIN])[DOMAIN]
    rng = np.random.default_rng(options.seed)
    validation = jnp.asarray(domain.validation[: options.held])
    test = jnp.asarray(domain.test[: options.held])

    def order() -> jnp.ndarray:
        rows = rng.integers(0, len(domain.train), size=(steps, options.batch))
        return jnp.asarray(domain.train[rows])

    here = (initial(options.seed), order())
    others = [(initial(1000 + i), order()) for i in range(options.others)]

    def judged(settings: Settings) -> float:
        return bits_per_byte(train(settings, *here), validation)

    searches = ["TPE", "BayesSearcher", *(["CMA-ES"] if available("CMA-ES") else [])]
    searches = searches[: options.searches]
    # For each way and budget: validation loss, and the settings with it.
    found: dict[tuple[str, int], tuple[float, Settings]] = {}
    iterations = {budget: budget // COST for budget in budgets}
    total = len(searches) * most + len(SHAPES) * options.peaks + sum(iterations.values())
    with context.progress("trainings and metagradients", total=total) as bar:
        for name, shape in SHAPES.items():
            line = shape_over(steps, *shape)[:, None] * np.ones(len(LAYERS))
            rest = (np.full_like(line, 0.9), np.full_like(line, 0.999), np.ones_like(line))
            tried = []
            for peak in np.geomspace(1e-3, 0.1, options.peaks):
                settings = Settings(peak * line, *rest)
                tried.append((judged(settings), settings))
                bar.advance()
            found[name, options.peaks] = min(tried, key=lambda pair: pair[0])
        for name in searches:
            seen: list[tuple[float, Settings]] = []

            def objective(config: dict, seen: list = seen) -> float:
                settings = of_config(config, steps)
                seen.append((judged(settings), settings))
                bar.advance()
                return seen[-1][0]

            if name == "BayesSearcher":
                searcher = BayesSearcher(KNOBS, seed=options.seed, first=[USUAL])
                minimize(objective, KNOBS, searcher=searcher, trials=most, progress=False)
            else:
                optuna_search(name, KNOBS, objective, most, seed=options.seed, first=[USUAL])
            for budget in budgets:
                found[name, budget] = min(seen[:budget], key=lambda pair: pair[0])
        start = of_config(USUAL, steps)
        begun = process_time()
        judged(start)
        training = process_time() - begun
        ends: list[float] = []

        def advance(_: StepReport) -> None:
            ends.append(process_time())
            bar.advance()

        for budget in budgets:
            learned = learn_schedules(
                PROBLEM,
                here[0],
                None,
                here[1],
                validation,
                optimizer=adam,
                start={name: getattr(start, name) for name in OVER_TIME},
                steps=steps,
                iterations=iterations[budget],
                group_of=layer_of,
                scales={"second_momentum": "logit"},
                stacked=True,
                outer_optimizer=OUTER,
                memory=MEMORY,
                callbacks=[advance],
            )
            settings = from_schedules(learned.values)
            found[OURS, budget] = judged(settings), settings

    def on_test(settings: Settings, training: tuple) -> float:
        return bits_per_byte(train(settings, *training), test)

    rows = []
    for (name, budget), (value, settings) in found.items():
        elsewhere = [on_test(settings, other) for other in others]
        rows.append(
            {
                "settings": name,
                "trainings": budget,
                "validation": value,
                "this training": on_test(settings, here),
                "other trainings": float(np.mean(elsewhere)),
                "of them the worst": max(elsewhere),
            }
        )
    context.table("held-out bits per byte", rows)
    at = np.arange(steps)
    middle = budgets[min(1, len(budgets) - 1)]
    context.plot(
        "learning rates",
        {name: Curve(at, found[name, options.peaks][1].learning_rate[:, 0]) for name in SHAPES}
        | {
            f"learned, {layer}": Curve(at, found[OURS, middle][1].learning_rate[:, i])
            for i, layer in enumerate(LAYERS)
        },
        x="training steps",
        y="learning rate",
        y_scale="log",
    )
    by: dict[tuple, Any] = {(row["settings"], row["trainings"]): row for row in rows}
    context.plot(
        "bits per byte by trainings",
        {
            name: Curve(
                np.array(budgets), np.array([by[name, b]["this training"] for b in budgets])
            )
            for name in [OURS, *searches]
        },
        x="trainings",
        y="held-out bits per byte",
        x_scale="log",
    )
    ours = by[OURS, middle]

    def lead(names: list[str], budget: int, column: str) -> float:
        return min(by[name, budget][column] for name in names) - ours[column]

    context.measure("below_searches", lead(searches, most, "this training"))
    context.measure("below_searches_elsewhere", lead(searches, most, "other trainings"))
    # The median leaves out what is compiled, between one budget and the next.
    context.measure("cost", float(np.median(np.diff(ends))) / training)
    context.measure("below_tuned", lead(list(SHAPES), options.peaks, "other trainings"))


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
