"""Single-loop stochastic methods against each other: outer loss against gradient-like calls.

Two problems: hyper-cleaning of Fashion-MNIST with half of the labels random, and one penalty per
feature of logistic regression on breast_cancer. The methods: SOBA (one step for each of inner
parameters, adjoint and hyperparameters), SABA (the same with variance reduction), F2SA (first
derivatives only), and two loops with warm starts, as a reference. All see mini-batches; the cost
is counted in examples for which a gradient, a Hessian-vector product or a mixed product was taken.

Each method gets the same tuning: the same pairs of inner and outer step sizes, tried on a data
split of their own. The runs that count are made at the best pair on other splits, and compared
where the cheapest of them ends.

Dagréou, Ablin, Vaiter and Moreau, "A framework for bilevel optimization that enables stochastic and
global variance reduction algorithms" (2022), figure 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from experiments.data import fashion_mnist, tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.hyper_cleaning import features
from hypergrad import BilevelProblem, ImplicitDifferentiation
from hypergrad.inner import OptaxSolver
from hypergrad.linear.cg import CG
from hypergrad.outer import (
    F2SA,
    SABA,
    SOBA,
    Alternating,
    Box,
    Minibatches,
    OuterAlgorithm,
    run,
)

LOOKS = 25


class Task(NamedTuple):
    """A problem, its data and start, the batch size, and the steps that the trials scale."""

    problem: BilevelProblem
    train: dict
    validation: dict
    params: jax.Array
    hparams: jax.Array
    batch: int
    inner_step: float
    outer_step: float
    constraint: Any


def losses(w: jax.Array, batch: dict) -> jax.Array:
    """Cross-entropy of each example."""
    scores = jax.nn.log_softmax(batch["x"] @ w)
    return -jnp.take_along_axis(scores, batch["y"][:, None], axis=1)[:, 0]


def weighted(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
    """Each example counts as much as its weight says."""
    weights = jax.nn.sigmoid(hparams[batch["index"]])
    return jnp.mean(weights * losses(w, batch)) + 1e-4 * jnp.sum(w**2)


def clean(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
    """All validation examples count alike."""
    return jnp.mean(losses(w, batch))


def cleaning(seed: int, quick: bool) -> Task:
    """One weight per training example, half of whose labels are random."""
    count, held = (1024, 512) if quick else (2048, 1024)
    rng = np.random.default_rng(seed)
    source, _ = fashion_mnist()
    rows = rng.permutation(len(source.y))[: count + held]
    x, y = features(source.x[rows]), source.y[rows].astype(np.int32)
    labels = y[:count].copy()
    touched = rng.random(count) < 0.5
    labels[touched] = rng.integers(0, 10, touched.sum())
    train = {"x": x[:count], "y": jnp.asarray(labels), "index": jnp.arange(count)}
    validation = {"x": x[count:], "y": jnp.asarray(y[count:])}
    start = jnp.zeros((x.shape[1], 10), jnp.float32), jnp.zeros(count, jnp.float32)
    problem = BilevelProblem(weighted, clean)
    return Task(problem, train, validation, *start, 64, 0.5, 100.0, Box(-6.0, 6.0))


def logistic(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
    """Logistic loss, labels -1 and 1."""
    return jnp.mean(jnp.logaddexp(0, -batch["y"] * (batch["x"] @ w)))


def penalised(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
    """The same with a penalty for each weight."""
    return logistic(w, hparams, batch) + 0.5 * jnp.sum(jnp.exp(hparams) * w**2)


def penalties(seed: int, quick: bool) -> Task:
    """One log-penalty per feature of a logistic regression."""
    data = tabular("breast_cancer", seed=seed, fractions=(0.4, 0.1))
    mean, spread = data.train.x.mean(0), data.train.x.std(0)

    def part(x: np.ndarray, y: np.ndarray, count: int) -> dict:
        x = jnp.asarray((x - mean) / spread, jnp.float32)[:count]
        return {"x": x, "y": jnp.asarray(2 * y - 1, jnp.float32)[:count]}

    train, validation = part(*data.train, 256), part(*data.validation, 224)
    start = jnp.zeros(30, jnp.float32), jnp.zeros(30, jnp.float32)
    problem = BilevelProblem(penalised, logistic)
    return Task(problem, train, validation, *start, 32, 0.2, 1.0, Box(-6.0, 1.0))


TASKS = {"hyper-cleaning": cleaning, "penalties": penalties}


class Method(NamedTuple):
    """An algorithm, its mini-batches, and the price of a step in steps of a single loop."""

    algorithm: OuterAlgorithm
    sampler: Minibatches
    price: int


TRIALS = [(inner, outer) for outer in (1.0, 4.0, 16.0, 64.0) for inner in (1.0, 0.3)]


def counter(params: jax.Array) -> jax.Array:
    """Steps taken so far."""
    return jnp.zeros((), jnp.int32)


def scaled(
    step: jax.Array, exponent: jax.Array, gradient: jax.Array, taken: jax.Array, params: Any = None
) -> tuple[jax.Array, jax.Array]:
    """The update of gradient descent, and the new count."""
    return -step * (taken + 1.0) ** -exponent * gradient, taken + 1


def descent(step: ArrayLike, exponent: float = 0.0) -> optax.GradientTransformation:
    """Gradient descent whose step size is data: a compiled run serves all of them."""
    size = jnp.asarray(step, jnp.float32), jnp.asarray(exponent, jnp.float32)
    return optax.GradientTransformation(counter, Partial(scaled, *size))


def methods(task: Task, inner: float, outer: float) -> dict[str, Method]:
    """The methods with steps `inner` and `outer` times those of the task."""
    a, b, n = jnp.float32(inner * task.inner_step), outer * task.outer_step, task.batch
    blocks = Minibatches(n, n, blocks=True)
    two_loops = ImplicitDifferentiation(
        OptaxSolver(descent(a), steps=1), CG(max_steps=10, tol=1e-2), error_estimate=False
    )
    keep = {"constraint": task.constraint}
    return {
        "SOBA": Method(SOBA(descent(b, 0.5), step_size=a, exponent=0.5, **keep), blocks, 1),
        "SABA": Method(SABA(descent(b), step_size=a, **keep), blocks, 1),
        "F2SA": Method(
            F2SA(descent(b), step_size=a, multiplier=10.0, **keep),
            Minibatches(n, n, policy="independent", fits=10),
            8,
        ),
        "two loops": Method(
            Alternating(two_loops, descent(b), fits=10, **keep),
            Minibatches(n, n, policy="fresh", fits=10),
            4,
        ),
    }


def descend(task: Task, method: Method, steps: int, seed: int) -> Curve:
    """Outer loss on all validation data against the examples differentiated."""
    every = max(steps // method.price // LOOKS, 1)
    table = run(
        task.problem,
        method.algorithm,
        task.params,
        task.hparams,
        task.train,
        task.validation,
        steps=every * LOOKS,
        sampler=method.sampler,
        every=every,
        seed=seed,
    ).history
    spent = np.cumsum([row["calls"] for row in table]) * task.batch
    at = [i for i, row in enumerate(table) if not np.isnan(row["validation"])]
    zero = float(task.problem.outer(task.params, task.hparams, task.validation))
    losses = [zero] + [table[i]["validation"] for i in at]
    return Curve(np.concatenate([[1], spent[at]]), losses)


@experiment(
    paper="Dagréou, Ablin, Vaiter and Moreau 2022, arXiv:2201.13409",
    options=[
        Option("steps", 4000, quick=1000, help="steps of a single-loop method"),
        Option("trials", len(TRIALS), quick=2, help="pairs of step sizes that each method tries"),
        Option("repeats", 3, quick=1, help="seeds"),
        Option("tasks", "hyper-cleaning,penalties", quick="penalties", help="comma-separated"),
    ],
    claims=[
        Claim(
            "all_descend",
            "every method ends below where it starts (largest ratio of outer losses)",
            at_most=0.9,
        ),
        Claim(
            "variance_reduction",
            "SABA ends below SOBA at equal calls (largest ratio over tasks)",
            at_most=1.0,
        ),
        Claim(
            "single_loop",
            "SABA ends below two loops at equal calls (largest ratio over tasks)",
            at_most=1.0,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Tune the steps of each method on each task, then run it at the best."""
    options = context.options
    names = options.tasks.split(",")
    trials = TRIALS[: options.trials]
    seeds = range(options.seed, options.seed + options.repeats)
    other = options.seed + 1000
    rows, ratio_start, ratio_soba, ratio_loops = [], [], [], []
    total = len(names) * 4 * (len(trials) + options.repeats)
    with context.progress("runs", total=total) as bar:

        def once(task: Task, method: str, pair: tuple[float, float], seed: int) -> Curve:
            curve = descend(task, methods(task, *pair)[method], options.steps, seed)
            bar.advance(incumbent=curve.y[-1])
            return curve

        for name in names:
            practice = TASKS[name](other, options.quick)
            tasks = {seed: TASKS[name](seed, options.quick) for seed in seeds}
            chosen, runs = {}, {}
            for method in methods(practice, 1.0, 1.0):
                tried = {pair: once(practice, method, pair, other) for pair in trials}
                # A pair that diverged has no loss.
                chosen[method] = min(
                    trials, key=lambda pair: np.nan_to_num(tried[pair].y[-1], nan=np.inf)
                )
                runs[method] = [once(tasks[seed], method, chosen[method], seed) for seed in seeds]
            budget = min(curve.x[-1] for curves in runs.values() for curve in curves)
            calls = np.linspace(1, budget, LOOKS + 1)
            losses = {
                method: np.array([np.interp(calls, curve.x, curve.y) for curve in curves])
                for method, curves in runs.items()
            }
            context.plot(
                f"{name}_loss",
                {method: Curve.of_runs(each, calls) for method, each in losses.items()},
                x="examples differentiated",
                y="outer loss on all validation data",
                title=name,
            )
            end = {method: float(np.median(each[:, -1])) for method, each in losses.items()}
            for method, loss in end.items():
                inner, outer = chosen[method]
                rows.append(
                    {
                        "task": name,
                        "method": method,
                        "inner step": inner * practice.inner_step,
                        "outer step": outer * practice.outer_step,
                        "examples differentiated": int(budget),
                        "outer loss": loss,
                    }
                )
                ratio_start.append(loss / float(np.median(losses[method][:, 0])))
            ratio_soba.append(end["SABA"] / end["SOBA"])
            ratio_loops.append(end["SABA"] / end["two loops"])
    context.table("outer loss at equal calls", rows)
    context.measure("all_descend", max(ratio_start))
    context.measure("variance_reduction", max(ratio_soba))
    context.measure("single_loop", max(ratio_loops))


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
