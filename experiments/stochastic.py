"""Single-loop stochastic methods against each other: outer loss against gradient-like calls.

Two problems: hyper-cleaning of Fashion-MNIST with half of the labels random, and one penalty per
feature of logistic regression on breast_cancer. The methods: SOBA (one step for each of inner
parameters, adjoint and hyperparameters), SABA (the same with variance reduction), F2SA (first
derivatives only), and two loops with warm starts, as a reference. All see mini-batches; the cost
is counted in examples for which a gradient, a Hessian-vector product or a mixed product was taken.

Dagréou, Ablin, Vaiter and Moreau, "A framework for bilevel optimization that enables stochastic and
global variance reduction algorithms" (2022), figure 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

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


class Task(NamedTuple):
    """A problem, its data and start, the batch size, and the scales of the two step sizes."""

    problem: BilevelProblem
    train: dict
    validation: dict
    params: jax.Array
    hparams: jax.Array
    batch: int
    inner_step: float
    outer_step: float
    constraint: Any


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

    def losses(w: jax.Array, batch: dict) -> jax.Array:
        scores = jax.nn.log_softmax(batch["x"] @ w)
        return -jnp.take_along_axis(scores, batch["y"][:, None], axis=1)[:, 0]

    def inner(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
        weights = jax.nn.sigmoid(hparams[batch["index"]])
        return jnp.mean(weights * losses(w, batch)) + 1e-4 * jnp.sum(w**2)

    problem = BilevelProblem(inner, lambda w, h, batch: jnp.mean(losses(w, batch)))
    train = {"x": x[:count], "y": jnp.asarray(labels), "index": jnp.arange(count)}
    validation = {"x": x[count:], "y": jnp.asarray(y[count:])}
    start = jnp.zeros((x.shape[1], 10), jnp.float32), jnp.zeros(count, jnp.float32)
    return Task(problem, train, validation, *start, 64, 0.5, 100.0, Box(-6.0, 6.0))


def penalties(seed: int, quick: bool) -> Task:
    """One log-penalty per feature of a logistic regression."""
    data = tabular("breast_cancer", seed=seed, fractions=(0.4, 0.1))
    mean, spread = data.train.x.mean(0), data.train.x.std(0)

    def part(x: np.ndarray, y: np.ndarray, count: int) -> dict:
        x = jnp.asarray((x - mean) / spread, jnp.float32)[:count]
        return {"x": x, "y": jnp.asarray(2 * y - 1, jnp.float32)[:count]}

    def loss(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
        return jnp.mean(jnp.logaddexp(0, -batch["y"] * (batch["x"] @ w)))

    def inner(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
        return loss(w, hparams, batch) + 0.5 * jnp.sum(jnp.exp(hparams) * w**2)

    train, validation = part(*data.train, 256), part(*data.validation, 224)
    start = jnp.zeros(30, jnp.float32), jnp.zeros(30, jnp.float32)
    problem = BilevelProblem(inner, loss)
    return Task(problem, train, validation, *start, 32, 0.2, 1.0, Box(-6.0, 1.0))


TASKS = {"hyper-cleaning": cleaning, "penalties": penalties}


def methods(task: Task) -> dict[str, tuple[OuterAlgorithm, Minibatches, int]]:
    """Each method with its sampler, and the outer steps that cost one unit of a single loop."""
    a, b, n = task.inner_step, task.outer_step, task.batch
    blocks = Minibatches(n, n, blocks=True)

    def decaying(step: jax.Array) -> jax.Array:
        return b / jnp.sqrt(step + 1.0)

    two_loops = ImplicitDifferentiation(
        OptaxSolver(optax.sgd(a), steps=1), CG(max_steps=10, tol=1e-2), error_estimate=False
    )
    keep = {"constraint": task.constraint}
    return {
        "SOBA": (SOBA(optax.sgd(decaying), step_size=a, exponent=0.5, **keep), blocks, 1),
        "SABA": (SABA(optax.sgd(b / 4), step_size=a / 3, **keep), blocks, 1),
        "F2SA": (
            F2SA(optax.sgd(b / 3), step_size=a, multiplier=10.0, **keep),
            Minibatches(n, n, policy="independent", fits=10),
            8,
        ),
        "two loops": (
            Alternating(two_loops, optax.sgd(b / 3), fits=10, **keep),
            Minibatches(n, n, policy="fresh", fits=10),
            4,
        ),
    }


@experiment(
    paper="Dagréou, Ablin, Vaiter and Moreau 2022, arXiv:2201.13409",
    options=[
        Option("steps", 4000, quick=1000, help="steps of a single-loop method"),
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
            "SABA ends below SOBA at equal calls, both as tuned here (largest ratio over tasks)",
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
    """Run each method on each task at equal cost."""
    options = context.options
    names = options.tasks.split(",")
    looks = 25
    rows, ratio_start, ratio_soba, ratio_loops = [], [], [], []
    with context.progress("runs", total=len(names) * 4 * options.repeats) as bar:
        for name in names:
            curves: dict[str, list[np.ndarray]] = {}
            costs: dict[str, np.ndarray] = {}
            for seed in range(options.seed, options.seed + options.repeats):
                task = TASKS[name](seed, options.quick)
                zero = task.problem.outer(task.params, task.hparams, task.validation)
                for method, (algorithm, sampler, price) in methods(task).items():
                    every = max(options.steps // price // looks, 1)
                    result = run(
                        task.problem,
                        algorithm,
                        task.params,
                        task.hparams,
                        task.train,
                        task.validation,
                        steps=every * looks,
                        sampler=sampler,
                        every=every,
                        seed=seed,
                    )
                    table = result.history
                    spent = np.cumsum([row["calls"] for row in table]) * task.batch
                    at = [i for i, row in enumerate(table) if not np.isnan(row["validation"])]
                    losses = np.array([float(zero)] + [table[i]["validation"] for i in at])
                    curves.setdefault(method, []).append(losses)
                    costs[method] = np.concatenate([[1], spent[at]])
                    bar.advance(incumbent=losses[-1])
            context.plot(
                f"{name}_loss",
                {method: Curve.of_runs(runs, costs[method]) for method, runs in curves.items()},
                x="examples differentiated",
                y="outer loss on all validation data",
                title=name,
            )
            end = {
                method: float(np.median([r[-1] for r in runs])) for method, runs in curves.items()
            }
            for method, loss in end.items():
                rows.append(
                    {
                        "task": name,
                        "method": method,
                        "examples differentiated": int(costs[method][-1]),
                        "outer loss": loss,
                    }
                )
                ratio_start.append(loss / float(np.median([r[0] for r in curves[method]])))
            ratio_soba.append(end["SABA"] / end["SOBA"])
            ratio_loops.append(end["SABA"] / end["two loops"])
    context.table("outer loss at the end", rows)
    context.measure("all_descend", max(ratio_start))
    context.measure("variance_reduction", max(ratio_soba))
    context.measure("single_loop", max(ratio_loops))


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
