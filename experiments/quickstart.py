"""Tune 64 penalties and a discrete choice on digits: hypergradient, TPE and random search.

Multinomial logistic regression on scikit-learn's handwritten digits, with one L2 penalty for each
of the 64 pixels and a choice of how the pixels are scaled. All methods see the same trainings,
count them alike and search the same space; only the hypergradient searcher looks at the derivative
of the validation loss that a training can report. There is none for the scaling, which it searches.
It begins with equal penalties in the middle of the space, a good guess: TPE is run from there too.

The curves show the best validation loss so far against the number of trainings: median and
quartiles over several splits of the data. The test columns of the table are computed from the
configuration that each method would have chosen, and chose nothing. Whoever tunes 64 numbers on a
validation set fits them to it as well, so the test loss falls less than the validation loss.
"""

import functools
import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna

import hypergrad
from experiments.data import tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem, ImplicitDifferentiation, Newton
from hypergrad.linear.cg import CG
from strategies import (
    Categorical,
    Float,
    HypergradientSearcher,
    RandomSearcher,
    SearchSpace,
    report,
)
from strategies.local import minimize

PIXELS, CLASSES = 64, 10
SPACE = SearchSpace(
    {
        "l2": Float(1e-4, 10.0, log=True, shape=(PIXELS,)),
        "scaling": Categorical(["none", "standardise", "to unit range"]),
    }
)
# Where the hypergradient searcher begins; TPE is run with this start and with its own.
MIDDLE = SPACE.default()
TPE, TPE_MIDDLE = "TPE", "TPE from the middle"
SEARCHERS = {
    "random": RandomSearcher,
    "hypergradient": functools.partial(HypergradientSearcher, first=[MIDDLE]),
}
METHODS = ("random", TPE, TPE_MIDDLE, "hypergradient")


# -- the training ----------------------------------------------------------------------------


def cross_entropy(params: dict, l2: jax.Array, batch: tuple) -> jax.Array:
    """Mean loss of the classifier on a batch `(x, y, size of the features)`."""
    x, y, size = batch
    scores = jax.nn.log_softmax(x @ weights(params, l2, size) + params["bias"])
    return -jnp.mean(jnp.take_along_axis(scores, y[:, None], axis=1))


def weights(params: dict, l2: jax.Array, size: jax.Array) -> jax.Array:
    """The classifier's weights, from weights stored in units in which the loss curves alike.

    Penalties over five orders of magnitude would make the training ill-conditioned otherwise.
    """
    return params["weights"] * jax.lax.rsqrt(l2 + 0.05 * size)[:, None]


def inner(params: dict, hparams: dict, batch: tuple) -> jax.Array:
    """Training loss: cross-entropy and one L2 penalty for each pixel."""
    l2 = hparams["l2"]
    squares = jnp.sum(weights(params, l2, batch[2]) ** 2, axis=1)
    penalty = 0.5 * jnp.sum(l2 * squares) + 5e-5 * jnp.sum(params["bias"] ** 2)
    return cross_entropy(params, l2, batch) + penalty


def outer(params: dict, hparams: dict, batch: tuple) -> jax.Array:
    """Validation loss: cross-entropy alone."""
    return cross_entropy(params, hparams["l2"], batch)


PROBLEM = BilevelProblem(inner, outer)
ESTIMATOR = ImplicitDifferentiation(Newton(tol=1e-4), CG(tol=1e-3))


class Training:
    """Training on one split of the data; called with a configuration, returns a `Hypergradient`."""

    def __init__(self, seed: int) -> None:
        # Most of the data judge, because 64 numbers can be fitted to a small validation set.
        data = tabular("digits", seed=seed, fractions=(0.65, 0.25))
        x = data.train.x
        spread, reach = np.std(x, axis=0), np.ptp(x, axis=0)
        scalings = {
            "none": (np.zeros(PIXELS), np.ones(PIXELS)),
            "standardise": (np.mean(x, axis=0), np.where(spread > 0, spread, 1)),
            "to unit range": (np.min(x, axis=0), np.where(reach > 0, reach, 1)),
        }
        self.parts = {}
        for name, (shift, scale) in scalings.items():
            size = jnp.asarray(np.mean(((x - shift) / scale) ** 2, axis=0))
            self.parts[name] = [
                (jnp.asarray((part.x - shift) / scale), jnp.asarray(part.y), size) for part in data
            ]

    def __call__(self, config: dict[str, Any]) -> hypergrad.Hypergradient:
        """Train from zero, and differentiate the validation loss."""
        train, validation, _ = self.parts[config["scaling"]]
        params = {"weights": jnp.zeros((PIXELS, CLASSES)), "bias": jnp.zeros(CLASSES)}
        return hypergrad.hypergradient(
            PROBLEM,
            params,
            {"l2": jnp.asarray(config["l2"])},
            train,
            validation,
            estimator=ESTIMATOR,
        )

    def test(self, config: dict[str, Any]) -> tuple[float, float]:
        """Loss and accuracy (%) on the test part."""
        params, l2 = self(config).state.params, jnp.asarray(config["l2"])
        x, y, size = test = self.parts[config["scaling"]][2]
        guesses = jnp.argmax(x @ weights(params, l2, size) + params["bias"], axis=1)
        return float(cross_entropy(params, l2, test)), 100 * float(jnp.mean(guesses == y))


# -- the same search on each engine ----------------------------------------------------------

Progress = Callable[[float], None]


def search_local(
    method: str, training: Training, trials: int, seed: int, progress: Progress
) -> tuple[list[float], dict]:
    """A search in this process. Returns the values by trial, and the best configuration."""
    found = minimize(
        lambda config: report(training(config)),
        SPACE,
        trials=trials,
        searcher=SEARCHERS[method](SPACE, seed=seed),
        callbacks=[lambda trial: progress(trial.value)],
    )
    return [item.value for item in found.history], found.best_config


def search_optuna(
    method: str, training: Training, trials: int, seed: int, progress: Progress
) -> tuple[list[float], dict]:
    """The same in an Optuna study; TPE is Optuna's own, with its defaults."""
    from strategies.optuna import HypergradSampler, suggest
    from strategies.optuna import report as report_to_optuna

    configs = {}

    def objective(trial: optuna.Trial) -> float:
        configs[trial.number] = suggest(trial, SPACE)
        return report_to_optuna(trial, training(configs[trial.number]))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if method in SEARCHERS:
        sampler = HypergradSampler(searcher=SEARCHERS[method], space=SPACE, seed=seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(sampler=sampler)
    if method == TPE_MIDDLE:
        penalties = {f"l2[{pixel}]": value for pixel, value in enumerate(MIDDLE["l2"])}
        study.enqueue_trial({**penalties, "scaling": MIDDLE["scaling"]})
    study.optimize(objective, trials, callbacks=[lambda _, trial: progress(trial.value)])
    return [trial.value for trial in study.trials], configs[study.best_trial.number]


def search_ray(
    method: str, training: Training, trials: int, seed: int, progress: Progress
) -> tuple[list[float], dict]:
    """The same in Ray Tune, in worker processes that are reused, so that each compiles once."""
    import ray
    from ray import tune

    from strategies.ray import HypergradSearch, result

    class Trial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.training = Training(seed)

        def step(self) -> dict[str, Any]:
            return {**result(self.training(self.config)), "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

    class Report(tune.Callback):
        def __init__(self, progress: Progress | None) -> None:
            self.progress = progress

        def on_trial_result(
            self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if self.progress is not None:
                self.progress(result["value"])

        def __reduce__(self) -> tuple:
            return type(self), (None,)  # Ray saves its callbacks; a progress bar cannot be.

    ray.init(
        address="local",
        ignore_reinit_error=True,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    search = HypergradSearch(
        SEARCHERS[method](SPACE, seed=seed),
        metric="value",
        mode="min",
        max_concurrent=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        results = tune.Tuner(
            Trial,
            tune_config=tune.TuneConfig(
                metric="value",
                mode="min",
                search_alg=search,
                num_samples=trials,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                callbacks=[Report(progress)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    if results.errors:
        raise results.errors[0]
    ledger = search.ledger
    assert ledger.best is not None
    return [item.value for item in ledger.history], ledger.best.config


ENGINES = {"local": search_local, "optuna": search_optuna, "ray": search_ray}


# -- the experiment --------------------------------------------------------------------------


def trainings(options: Any) -> int:
    """How many each method gets on each split; a trial of Ray costs more to start than to train."""
    return options.trials or (20 if options.engine == "ray" else 100)


@experiment(
    paper="ours",
    options=[
        Option("trials", 0, quick=15, help="trainings a method and split; 0: 100, on Ray 20"),
        Option("splits", 3, quick=1, help="splits of the data"),
        Option(
            "engine",
            "local",
            choices=tuple(ENGINES),
            help="who runs our searchers; TPE always runs in Optuna",
        ),
    ],
    claims=[
        Claim(
            "equal_tpe",
            "at equal trainings the hypergradient searcher ends below the better TPE "
            "(ratio of median losses)",
            at_most=0.8,
        ),
        Claim(
            "equal_random",
            "at equal trainings it ends below random search (ratio of median losses)",
            at_most=0.8,
        ),
        Claim(
            "ten_against_hundred",
            "with 10 trainings it is below either TPE with all of its (100), on every split "
            "(largest ratio of losses)",
            at_most=1.0,
        ),
    ],
)
def run(context: Context) -> None:
    """Search, compare, and check the claims."""
    options = context.options
    trials = trainings(options)
    # A training that is not solved to the last digit says so; the searcher reads it in the report.
    warnings.simplefilter("ignore", hypergrad.InaccurateHypergradientWarning)
    losses = {method: np.full((options.splits, trials), np.nan) for method in METHODS}
    tests: dict[str, list] = {method: [] for method in METHODS}
    total = len(METHODS) * options.splits * trials
    with context.progress("trainings", total) as bar:
        for split in range(options.splits):
            training = Training(seed=options.seed + split)
            for method in METHODS:
                search = ENGINES[options.engine if method in SEARCHERS else "optuna"]
                best = [np.inf]

                def progress(value: float, best: list[float] = best) -> None:
                    best[0] = min(best[0], value)
                    bar.advance(incumbent=best[0])

                values, chosen = search(method, training, trials, options.seed + split, progress)
                losses[method][split] = np.minimum.accumulate(values)
                tests[method].append(training.test(chosen))

    context.plot(
        "best_so_far",
        {method: Curve.of_runs(losses[method]) for method in METHODS},
        x="trainings",
        y="best validation loss so far",
        y_scale="log",
        title="64 penalties and a discrete choice, digits",
    )
    marks = sorted({n for n in (10, 25, 50, trials) if n <= trials})
    context.table(
        "validation loss after N trainings; test at the end; medians",
        [
            {
                "method": method,
                **{f"N = {n}": np.median(losses[method][:, n - 1]) for n in marks},
                "test loss": np.median([loss for loss, _ in tests[method]]),
                "test acc. %": np.median([accuracy for _, accuracy in tests[method]]),
            }
            for method in METHODS
        ],
    )
    final = {method: np.median(losses[method][:, -1]) for method in METHODS}
    context.measure("equal_tpe", final["hypergradient"] / min(final[TPE], final[TPE_MIDDLE]))
    context.measure("equal_random", final["hypergradient"] / final["random"])
    without = np.minimum(losses[TPE][:, -1], losses[TPE_MIDDLE][:, -1])
    ten = losses["hypergradient"][:, min(10, trials) - 1]
    context.measure("ten_against_hundred", np.max(ten / without))


if __name__ == "__main__":
    raise SystemExit(run.main())
