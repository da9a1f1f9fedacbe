"""The value of a gradient: trainings that each searcher needs with it and without.

Real trainings whose validation loss can be differentiated in 2 to 64 hyperparameters, and the
standard functions with one valley and with many; gradients exact, and biased by a linear solve
that is stopped early, by an unrolling that is cut off, or by a fixed rotation. All searchers begin
at the middle of the space and minimise the same value; a gradient costs a training nothing here.

The level of a task is the best value that any of TPE, CMA-ES and a Gaussian process (Optuna's where
PyTorch is installed, else ours) has found after all its trainings; counted are the trainings after
which a searcher is at the level. "bayes" is one searcher with and without gradients, so its two
counts differ by the gradient alone.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hypergrad
from experiments.data import tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.harness.optuna_search import available, optuna_search
from hypergrad import (
    CG,
    BilevelProblem,
    Dense,
    FunctionSolver,
    ImplicitDifferentiation,
    Newton,
    TruncatedUnrolled,
    Unrolled,
)
from strategies import BayesSearcher, Float, HypergradientSearcher, Report, SearchSpace, report
from strategies.local import minimize
from strategies.searchers.base import Searcher

Config = dict[str, Any]


class Task(NamedTuple):
    """What is searched, and how a configuration is evaluated."""

    space: SearchSpace
    evaluate: Callable[[Config], Report]


# -- trainings -------------------------------------------------------------------------------


def standardised(name: str, seed: int, fractions: tuple[float, float]) -> list[tuple]:
    """Training and validation part of a bundled set, features centred with unit spread."""
    data = tabular(name, seed=seed, fractions=fractions)
    mean, spread = data.train.x.mean(0), data.train.x.std(0)
    spread[spread == 0] = 1
    return [((part.x - mean) / spread, part.y) for part in data[:2]]


def penalties(size: int, low: float, high: float) -> SearchSpace:
    """So many L2 penalties."""
    return SearchSpace({"l2": Float(low, high, log=True, shape=(size,))})


def trained(problem: BilevelProblem, params: Any, parts: list, estimator: Any) -> Callable:
    """The evaluation of a bilevel problem, from the same start each time."""

    def evaluate(config: Config) -> Report:
        hparams = {name: jnp.asarray(value) for name, value in config.items()}
        with warnings.catch_warnings():
            # Biased gradients are part of the experiment; their error is reported.
            warnings.simplefilter("ignore", hypergrad.InaccurateHypergradientWarning)
            return report(
                hypergrad.hypergradient(problem, params, hparams, *parts, estimator=estimator)
            )

    return evaluate


def ridge_loss(w: jax.Array, hparams: dict, batch: tuple) -> jax.Array:
    """Half the mean squared error."""
    x, y, _ = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def ridge_inner(w: jax.Array, hparams: dict, batch: tuple) -> jax.Array:
    """With one penalty for each group of features."""
    return ridge_loss(w, hparams, batch) + 0.5 * jnp.sum(hparams["l2"][batch[2]] * w**2)


def ridge_solve(w: jax.Array, hparams: dict, batch: tuple) -> jax.Array:
    """The minimiser in closed form."""
    x, y, group = batch
    return jnp.linalg.solve(x.T @ x / len(y) + jnp.diag(hparams["l2"][group]), x.T @ y / len(y))


RIDGE = BilevelProblem(ridge_inner, ridge_loss)


def ridge(size: int, estimator: Any) -> Callable[[int], Task]:
    """Diabetes with products of features, in `size` groups."""

    def make(seed: int) -> Task:
        (x, y), (x_val, y_val) = standardised("diabetes", seed, (0.3, 0.3))
        pairs = np.triu_indices(x.shape[1])

        def features(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, x[:, pairs[0]] * x[:, pairs[1]]], axis=1)[:, :64]

        shift, unit = features(x).mean(0), features(x).std(0)
        unit[unit < 1e-9] = 1
        group = jnp.asarray(np.random.default_rng(0).permutation(64) % size)
        parts = [
            (
                jnp.asarray((features(a) - shift) / unit),
                jnp.asarray((b - y.mean()) / y.std()),
                group,
            )
            for a, b in [(x, y), (x_val, y_val)]
        ]
        evaluate = trained(RIDGE, jnp.zeros(64), parts, estimator)
        return Task(penalties(size, 1e-4, 1e3), evaluate)

    return make


def logistic_loss(w: jax.Array, hparams: dict, batch: tuple) -> jax.Array:
    """Mean cross-entropy of a linear classifier with a bias."""
    x, y = batch
    scores = jax.nn.log_softmax(x @ w[:-1] + w[-1])
    return -jnp.mean(jnp.take_along_axis(scores, y[:, None], axis=1))


def logistic_inner(w: jax.Array, hparams: dict, batch: tuple) -> jax.Array:
    """With one penalty for each feature, and a small one for the bias."""
    penalty = jnp.sum(hparams["l2"][:, None] * w[:-1] ** 2) + 1e-4 * jnp.sum(w[-1] ** 2)
    return logistic_loss(w, hparams, batch) + 0.5 * penalty


LOGISTIC = BilevelProblem(logistic_inner, logistic_loss)


def logistic(name: str, classes: int, estimator: Any) -> Callable[[int], Task]:
    """A linear classifier with a penalty for each feature."""

    def make(seed: int) -> Task:
        parts = [(jnp.asarray(x), jnp.asarray(y)) for x, y in standardised(name, seed, (0.5, 0.2))]
        size = parts[0][0].shape[1]
        evaluate = trained(LOGISTIC, jnp.zeros((size + 1, classes)), parts, estimator)
        return Task(penalties(size, 1e-4, 10.0), evaluate)

    return make


LAYERS = ("hidden", "output")


def network_loss(params: dict, hparams: dict, batch: tuple) -> jax.Array:
    """Mean cross-entropy of a network with one hidden layer."""
    x, y = batch
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    scores = jax.nn.log_softmax(hidden @ params["output"]["w"] + params["output"]["b"])
    return -jnp.mean(jnp.take_along_axis(scores, y[:, None], axis=1))


def network_inner(params: dict, hparams: dict, batch: tuple) -> jax.Array:
    """With a decay for each of the four arrays."""
    squares = jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)])
    return network_loss(params, hparams, batch) + 0.5 * jnp.sum(hparams["decay"] * squares)


NETWORK = BilevelProblem(network_inner, network_loss)


def optimizer(hparams: dict) -> optax.GradientTransformation:
    """Momentum with a rate for each layer."""
    rates = {layer: optax.sgd(hparams["rate"][i], hparams["momentum"]) for i, layer in
             enumerate(LAYERS)}  # fmt: skip
    labels = {layer: {"w": layer, "b": layer} for layer in LAYERS}
    return optax.multi_transform(rates, labels)


def network(estimator: Any) -> Callable[[int], Task]:
    """Sixty steps of momentum on digits: decays, rates and momentum, seven in all."""

    def make(seed: int) -> Task:
        (x, y), (x_val, y_val) = standardised("digits", seed, (0.4, 0.45))
        parts = [(jnp.asarray(x), jnp.asarray(y)), (jnp.asarray(x_val), jnp.asarray(y_val))]
        rng = np.random.default_rng(seed)
        params = {
            "hidden": {"w": jnp.asarray(rng.normal(0, 1 / 8, (64, 16))), "b": jnp.zeros(16)},
            "output": {"w": jnp.asarray(rng.normal(0, 1 / 4, (16, 10))), "b": jnp.zeros(10)},
        }
        space = SearchSpace(
            {
                "decay": Float(1e-5, 1.0, log=True, shape=(4,)),
                "rate": Float(1e-3, 10.0, log=True, shape=(2,)),
                "momentum": Float(0.0, 0.98),
            }
        )
        return Task(space, trained(NETWORK, params, parts, estimator))

    return make


# -- functions -------------------------------------------------------------------------------


def quadratic(z: jax.Array, curvature: jax.Array) -> jax.Array:
    """A rotated bowl of condition number 1,000."""
    return 0.5 * z @ curvature @ z


def rosenbrock(z: jax.Array, _: jax.Array) -> jax.Array:
    """A bent valley, minimum at 0."""
    z = z + 1
    return jnp.sum(100 * (z[1:] - z[:-1] ** 2) ** 2 + (1 - z[:-1]) ** 2)


def styblinski(z: jax.Array, _: jax.Array) -> jax.Array:
    """Two valleys in each coordinate, minimum at 0."""
    z = z - 2.903534
    return jnp.mean(0.5 * (z**4 - 16 * z**2 + 5 * z)) + 39.16617


def levy(z: jax.Array, _: jax.Array) -> jax.Array:
    """Waves across a bowl, minimum at 0."""
    w = 1 + z / 4
    middle = jnp.sum((w[:-1] - 1) ** 2 * (1 + 10 * jnp.sin(jnp.pi * w[:-1] + 1) ** 2))
    first, last = jnp.sin(jnp.pi * w[0]) ** 2, (w[-1] - 1) ** 2
    return first + middle + last * (1 + jnp.sin(2 * jnp.pi * w[-1]) ** 2)


def ackley(z: jax.Array, _: jax.Array) -> jax.Array:
    """A steep hole in a rippled plain, minimum at 0."""
    # The root is smoothed at the minimum, where it has no derivative.
    root = jnp.sqrt(jnp.mean(z**2) + 1e-12)
    return 20 + jnp.e - 20 * jnp.exp(-0.2 * root) - jnp.exp(jnp.mean(jnp.cos(2 * jnp.pi * z)))


def rastrigin(z: jax.Array, _: jax.Array) -> jax.Array:
    """A bowl full of dents, one at each whole number, minimum at 0."""
    return jnp.sum(z**2 - 10 * jnp.cos(2 * jnp.pi * z) + 10)


def branin(z: jax.Array, _: jax.Array) -> jax.Array:
    """Three equally deep valleys."""
    a, b = z
    bowl = (b - 5.1 / (4 * jnp.pi**2) * a**2 + 5 / jnp.pi * a - 6) ** 2
    return bowl + 10 * (1 - 1 / (8 * jnp.pi)) * jnp.cos(a) + 10 - 0.397887


HARTMANN_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8],
     [17, 8, 0.05, 10, 0.1, 14]]
)  # fmt: skip
HARTMANN_P = 1e-4 * np.array(
    [[1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991],
     [2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381]]
)  # fmt: skip


def hartmann(z: jax.Array, _: jax.Array) -> jax.Array:
    """Four holes of different depth in six dimensions."""
    away = jnp.sum(HARTMANN_A * (z - HARTMANN_P) ** 2, axis=1)
    return 3.32237 - jnp.array([1.0, 1.2, 3.0, 3.2]) @ jnp.exp(-away)


class Function(NamedTuple):
    """A function, the width of its box, and the box's low corner, drawn at random if `None`."""

    function: Callable
    width: np.ndarray | float
    low: np.ndarray | None = None


FUNCTIONS = {
    "quadratic": Function(quadratic, 1.0),
    "rosenbrock": Function(rosenbrock, 4.0),
    "styblinski": Function(styblinski, 10.0),
    "levy": Function(levy, 20.0),
    "ackley": Function(ackley, 30.0),
    "rastrigin": Function(rastrigin, 10.24),
    "branin": Function(branin, np.array([15.0, 15.0]), np.array([-5.0, 0.0])),
    "hartmann": Function(hartmann, 1.0, np.zeros(6)),
}
_SLOPES = {name: jax.jit(jax.value_and_grad(f.function)) for name, f in FUNCTIONS.items()}


def function(name: str, size: int, bias: float = 0.0) -> Callable[[int], Task]:
    """A standard function, its minimum moved to a random place of the unit cube.

    With a `bias`, the gradient is turned: an orthogonal part of that relative size is added, the
    same turn everywhere.
    """

    def make(seed: int) -> Task:
        rng = np.random.default_rng([seed, size])
        _, width, low = FUNCTIONS[name]
        low = -rng.uniform(0.15, 0.85, size) * width if low is None else low
        basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
        curvature = jnp.asarray(basis * np.logspace(0, 3, size) @ basis.T)
        skew = np.triu(rng.standard_normal((size, size)), 1)
        skew = skew - skew.T

        def evaluate(config: Config) -> Report:
            value, slope = _SLOPES[name](
                jnp.asarray(low + width * np.array(config["x"])), curvature
            )
            slope = np.asarray(slope) * width
            if bias and (across := skew @ slope).any():
                # `v · Sv = 0` for a skew matrix: the turn takes nothing of the slope itself.
                slope = slope + bias * np.linalg.norm(slope) * across / np.linalg.norm(across)
            return report(float(value), {"x": slope}, gradient_error=bias)

        return Task(SearchSpace({"x": Float(0.0, 1.0, shape=(size,))}), evaluate)

    return make


# -- tasks and searchers ---------------------------------------------------------------------

NEWTON = Newton(tol=1e-8)
CLOSED = ImplicitDifferentiation(FunctionSolver(ridge_solve), Dense())
ACCURATE = ImplicitDifferentiation(NEWTON, CG(tol=1e-8))
# Products that leave an error of tens of per cent.
ROUGH_RIDGE = ImplicitDifferentiation(FunctionSolver(ridge_solve), CG(tol=0.0, max_steps=3))
ROUGH = ImplicitDifferentiation(Newton(tol=1e-3), CG(tol=0.0, max_steps=3))

TASKS: dict[str, Callable[[int], Task]] = {
    "ridge-2": ridge(2, CLOSED),
    "ridge-8": ridge(8, CLOSED),
    "ridge-64": ridge(64, CLOSED),
    "logistic-30": logistic("breast_cancer", 2, ACCURATE),
    "digits-64": logistic("digits", 10, ACCURATE),
    "network-7": network(Unrolled(optimizer, 60)),
    "quadratic-2": function("quadratic", 2),
    "quadratic-16": function("quadratic", 16),
    "quadratic-64": function("quadratic", 64),
    "rosenbrock-2": function("rosenbrock", 2),
    "rosenbrock-16": function("rosenbrock", 16),
    "branin-2": function("branin", 2),
    "hartmann-6": function("hartmann", 6),
    "levy-8": function("levy", 8),
    "styblinski-8": function("styblinski", 8),
    "ackley-8": function("ackley", 8),
    "rastrigin-4": function("rastrigin", 4),
    "ridge-8-biased": ridge(8, ROUGH_RIDGE),
    "logistic-30-biased": logistic("breast_cancer", 2, ROUGH),
    "network-7-biased": network(TruncatedUnrolled(optimizer, 60, 30)),
    "quadratic-16-biased": function("quadratic", 16, 0.3),
    "levy-8-biased": function("levy", 8, 0.3),
}
QUICK = ("ridge-8", "branin-2", "ridge-8-biased")
# The others can be asked for by name.
DEFAULT = [
    name
    for name in TASKS
    if name not in ("digits-64", "quadratic-2", "rosenbrock-16", "logistic-30-biased",
                    "quadratic-16-biased")
]  # fmt: skip

OURS: dict[str, tuple[type[Searcher], bool]] = {
    "hypergradient": (HypergradientSearcher, True),
    "hypergradient, values only": (HypergradientSearcher, False),
    "bayes": (BayesSearcher, True),
    "bayes, values only": (BayesSearcher, False),
}
PEERS = ("TPE", "GP", "CMA-ES")


def race(task: Task, name: str, trials: int, seed: int) -> np.ndarray:
    """Best value so far after each training of a searcher."""
    middle = task.space.default()
    if name in PEERS:
        found = optuna_search(
            name,
            task.space,
            lambda config: task.evaluate(config).value,
            trials,
            seed=seed,
            first=[middle],
        )
        values = [np.inf if value is None or not np.isfinite(value) else value for value in found]
        return np.minimum.accumulate(values)
    kind, graded = OURS[name]
    searcher = kind(task.space, seed=seed, first=[middle])

    def evaluate(config: Config) -> Report:
        full = task.evaluate(config)
        return full if graded else report(full.value)

    result = minimize(evaluate, task.space, searcher=searcher, trials=trials)
    return np.nan_to_num(result.best_so_far(), nan=np.inf)


def needed(best: np.ndarray, level: float) -> float:
    """Trainings until the best value is at the level; infinite if it never was."""
    reached = np.flatnonzero(best <= level)
    return float(reached[0] + 1) if len(reached) else np.inf


@experiment(
    paper="ours",
    x64=True,
    options=[
        Option("tasks", ",".join(DEFAULT), quick=",".join(QUICK), help="names, comma-separated"),
        Option("graded", 25, quick=10, help="trainings of a search with gradients"),
        Option("plain", 100, quick=20, help="trainings of a search without"),
        Option("seeds", 5, quick=1, help="repetitions, with different data or places"),
        Option("bayes", 8, help="most dimensions of the Bayesian searcher with gradients"),
        Option("values", 30, help="most dimensions of the same on values only"),
    ],
    claims=[
        Claim(
            "exact",
            "tasks with exact gradients where the hypergradient searcher's trainings do not beat "
            "four times as many of TPE, CMA-ES and a Gaussian process",
            at_most=0,
        ),
        Claim(
            "biased",
            "tasks with biased gradients where it is behind what it finds in as many trainings by "
            "values only",
            at_most=0,
        ),
        Claim(
            "bayes",
            "trainings that the Bayesian searcher needs with gradients, over those without, to "
            "reach what it has after half of its trainings without (median over tasks)",
            at_most=0.5,
            # Of twenty trainings, the ten that are the level are mostly the model's first guesses.
            quick=1.0,
        ),
    ],
)
def run(context: Context) -> None:
    """Race all searchers on all tasks."""
    options = context.options
    tasks = options.tasks.split(",")
    if unknown := set(tasks) - set(TASKS):
        raise ValueError(f"'tasks': expected names among {list(TASKS)}, received {unknown}")
    peers = [name for name in PEERS if available(name)]
    if missing := [name for name in PEERS if name not in peers]:
        context.say(f"Left out, as they need a package that is not installed: {missing}.")
    without = [*peers, *(name for name, (_, graded) in OURS.items() if not graded)]
    names = [*(name for name, (_, graded) in OURS.items() if graded), *without]
    bests: dict[str, dict[str, np.ndarray]] = {}
    with context.progress("searches", total=len(tasks) * options.seeds * len(names)) as bar:
        for task_name in tasks:
            runs: dict[str, list[np.ndarray]] = {name: [] for name in names}
            for seed in range(options.seed, options.seed + options.seeds):
                task = TASKS[task_name](seed)
                for name in names:
                    most = {"bayes": options.bayes, "bayes, values only": options.values}
                    if task.space.dimension > most.get(name, np.inf):
                        bar.advance()
                        continue
                    trials = options.plain if name in without else options.graded
                    runs[name].append(race(task, name, trials, seed))
                    bar.advance(incumbent=runs[name][-1][-1])
            bests[task_name] = {name: np.array(found) for name, found in runs.items() if found}

    # Ours stands in for Optuna's Gaussian process, which needs PyTorch.
    rivals = [*peers] if "GP" in peers else [*peers, "bayes, values only"]
    lost: dict[bool, list[str]] = {False: [], True: []}
    ratios, rows, counts = [], [], []
    for task_name, best in bests.items():
        final = {name: float(np.median(found[:, -1])) for name, found in best.items()}
        raced = [name for name in rivals if name in best]
        rival = min(raced, key=final.__getitem__)
        level = [min(best[name][seed, -1] for name in raced) for seed in range(options.seeds)]
        takes = {
            name: float(np.median([needed(b, at) for b, at in zip(found, level, strict=True)]))
            for name, found in best.items()
        }
        if biased := "biased" in task_name:
            # Nobody knows what a wrong slope is worth, but it must not be worse than none.
            alone = best["hypergradient, values only"][:, options.graded - 1]
            behind = final["hypergradient"] > float(np.median(alone))
        else:
            behind = final["hypergradient"] >= final[rival]
        if behind:
            lost[biased].append(task_name)
        ratio = np.nan
        if "bayes" in best and "bayes, values only" in best:
            plain = best["bayes, values only"]
            half = plain[:, options.plain // 2 - 1]
            with_gradient, alone = (
                np.median([needed(b, at) for b, at in zip(found, half, strict=True)])
                for found in (best["bayes"], plain)
            )
            ratio = float(with_gradient / alone)
            ratios.append(ratio)
        rows.append(
            {"task": task_name, **{n: final.get(n, np.nan) for n in names}, "best without": rival}
        )
        counts.append(
            {"task": task_name, **{n: takes.get(n, np.nan) for n in names}, "bayes, ratio": ratio}
        )
    context.table(f"best value after {options.graded} trainings, {options.plain} without", rows)
    context.table("trainings until the level of the best search without gradients", counts)
    for biased, names_lost in lost.items():
        if names_lost:
            kind = "biased" if biased else "exact"
            context.say(f"Behind with {kind} gradients: {'; '.join(names_lost)}.")
    draw(context, bests)
    context.measure("exact", len(lost[False]))
    context.measure("biased", len(lost[True]))
    context.measure("bayes", float(np.median(ratios)))


def draw(context: Context, bests: dict[str, dict[str, np.ndarray]]) -> None:
    """The race on each task, and how many trainings reach the level."""
    columns = min(4, len(bests))
    rows = -(-len(bests) // columns)
    with context.figure("races", width=3.2 * columns, height=2.6 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (task, best) in zip(grid.ravel(), bests.items(), strict=False):
            lowest = min(float(found.min()) for found in best.values())
            for name, found in best.items():
                above = np.median(found, axis=0) - lowest
                axes.plot(np.arange(1, len(above) + 1), np.maximum(above, 1e-12), label=name)
            axes.set(title=task, yscale="log", xscale="log")
        for axes in grid.ravel()[len(bests) :]:
            axes.set_axis_off()
        grid[0, 0].legend(frameon=False, fontsize=6)
        figure.supxlabel("trainings")
        figure.supylabel("median best value, above the best of all")
    shares = {
        name: Curve(
            np.arange(1, best[name].shape[1] + 1),
            np.mean(
                [_reached(other[name], other) for other in bests.values() if name in other], axis=0
            ),
        )
        for best in [next(iter(bests.values()))]
        for name in best
    }
    context.plot(
        "share",
        shares,
        x="trainings",
        y="share of runs at the level",
    )


def _reached(found: np.ndarray, best: dict[str, np.ndarray]) -> np.ndarray:
    """Share of the runs that are at the level, after each training."""
    stands_in = () if "GP" in best else ("bayes, values only",)
    rivals = [runs for name, runs in best.items() if name in (*PEERS, *stands_in)]
    level = np.min([runs[:, -1] for runs in rivals], axis=0)
    return np.mean(found <= level[:, None], axis=0)


if __name__ == "__main__":
    raise SystemExit(run.main())
