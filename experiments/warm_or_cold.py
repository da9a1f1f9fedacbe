"""Warm-started solutions carry information on the outer data; cold-started ones do not.

Ten synthetic images with learnable soft labels are tuned so that a classifier trained on them does
well on real images. With a cold start each outer step trains from scratch: all that is learnt is in
the images. With a warm start the classifier takes one step per outer step and is never reset: it
accumulates what every set of images on the way has taught it, and training afresh on the final
images cannot give it back. The inverse Hessian is a Neumann series of `K` products: its truncation
filters directions of small curvature out, as damping does. An inner penalty that makes the inner
solution unique closes much of the gap.

Vicol, Lorraine, Pedregosa, Duvenaud and Grosse, "On implicit bias in overparameterized bilevel
optimization" (2022), table 2 and section 4.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.distillation import (
    STEP,
    accuracy,
    blank,
    distillation,
    initialise,
    real,
    train,
)
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import ImplicitDifferentiation
from hypergrad.inner import OptaxSolver
from hypergrad.linear import symmetric_operator
from hypergrad.linear.neumann import Neumann
from hypergrad.outer import Alternating, run
from hypergrad.unrolled import Unrolled


def larger(key: jax.Array) -> jax.Array:
    """Initial weights large enough for what they hold to be seen in the accuracy."""
    return 10 * initialise(key)


def filter_distance(products: int) -> float:
    """How far the Neumann filter is from that of damping, over three decades of curvature.

    With `K` products of step `α` an eigenvalue `μ` is inverted as `(1 − (1 − αμ)^(K+1)) / μ`, read
    off the solver, where damping by `1 / (α (K + 1))` gives `1 / (μ + 1 / (α (K + 1)))`.
    """
    eigenvalues = jnp.logspace(-3, 0, 40)
    operator = symmetric_operator(lambda v: eigenvalues * v)
    found = Neumann(products=products, step=STEP).solve(operator, jnp.ones(40)).value
    damped = 1 / (eigenvalues + 1 / (STEP * (products + 1)))
    return float(jnp.max(jnp.maximum(found / damped, damped / found)))


@experiment(
    paper="Vicol, Lorraine, Pedregosa, Duvenaud and Grosse 2022, arXiv:2212.14032",
    options=[
        Option("cold_steps", 400, quick=300, help="outer steps of the cold start"),
        Option("warm_steps", 4000, quick=1500, help="outer steps of the warm starts"),
        Option("inner_steps", 100, help="training steps of a cold start"),
        Option("real", 2000, quick=1000, help="real images of the outer loss"),
    ],
    claims=[
        Claim(
            "warm_joint", "warm start: accuracy of the pair of weights and images, %", None, 70.0
        ),
        Claim(
            "warm_drop", "points lost by training afresh after a warm start, K = 20", at_least=20.0
        ),
        Claim("cold", "cold start: accuracy of training afresh, %", at_least=70.0),
        Claim(
            "ridge",
            "the points lost with an inner penalty, relative to those lost without",
            at_most=1.0,
        ),
        Claim(
            "damping",
            "the Neumann filter is that of damping within a factor, for K from 5 to 100",
            at_most=1.5,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Distil cold and warm, and train afresh after each."""
    options = context.options
    data, test = real(options.real, options.seed)
    hparams = blank(options.seed)
    hparams["labels"] = hparams["labels"] / 4
    start, *fresh = jax.random.split(jax.random.key(options.seed), 4)

    def warm(products: int) -> ImplicitDifferentiation:
        return ImplicitDifferentiation(
            OptaxSolver(optax.sgd(STEP), steps=1),
            Neumann(products=products, step=STEP),
            error_estimate=False,
        )

    cold_run = (Unrolled(optax.sgd(STEP), options.inner_steps), options.cold_steps, 0.0)
    runs = {"cold": cold_run, "warm, K = 20": (warm(20), options.warm_steps, 0.0)}
    if not options.quick:
        runs["warm, K = 1"] = (warm(1), options.warm_steps, 0.0)
    runs["warm, K = 20, inner L2"] = (warm(20), options.warm_steps, 1e-2)

    rows, curves, lost, joint = [], {}, {}, {}
    with context.progress("runs", total=len(runs)) as bar:
        for name, (estimator, steps, ridge) in runs.items():
            problem = distillation(ridge)
            result = run(
                problem,
                Alternating(estimator, optax.adam(0.02)),
                larger(start),
                hparams,
                None,
                data,
                steps=steps,
                every=max(steps // 20, 1),
            )
            afresh = train(problem, max(options.inner_steps, 1000 if "warm" in name else 0))
            scores = [accuracy(afresh(larger(key), result.hparams), test) for key in fresh]
            joint[name] = accuracy(result.params, test)
            lost[name] = joint[name] - float(np.mean(scores))
            rows.append(
                {
                    "start": name,
                    "joint accuracy %": joint[name],
                    "trained afresh %": float(np.mean(scores)),
                    "spread": float(np.std(scores)),
                    "points lost": lost[name],
                }
            )
            looks = [row for row in result.history if not np.isnan(row["validation"])]
            curves[name] = Curve(
                [row["step"] for row in looks], [row["validation"] for row in looks]
            )
            bar.advance(incumbent=joint[name])
    context.table("test accuracy of a linear classifier, ten synthetic images", rows)
    context.plot("outer_loss", curves, x="outer steps", y="loss on real images", x_scale="log")
    context.measure("warm_joint", joint["warm, K = 20"])
    context.measure("warm_drop", lost["warm, K = 20"])
    context.measure("cold", joint["cold"] - lost["cold"])
    context.measure("ridge", lost["warm, K = 20, inner L2"] / lost["warm, K = 20"])
    context.measure("damping", max(filter_distance(products) for products in (5, 20, 100)))


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
