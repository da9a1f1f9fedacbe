"""Warm-started solutions carry information on the outer data; cold-started ones do not.

Ten synthetic images with learnable soft labels are tuned so that a classifier trained on them does
well on real images. With a cold start each outer step trains from scratch: all that is learnt is in
the images. With a warm start the classifier takes one step per outer step and is never reset: it
accumulates what every set of images on the way has taught it, and training afresh on the final
images cannot give it back. The inverse Hessian is a Neumann series of `K` products: its truncation
filters directions of small curvature out, as damping does. An inner penalty that makes the inner
solution unique closes much of the gap.

That holds where there is a single outer variable, too. Three classes of points in the plane are
learnt by a small network whose training set is one point on a circle: its angle decides its label
as well, which two neighbouring classes share at most. What the network knows of the third it has
kept from earlier points: trained afresh on the last one it rarely knows that class. Two
learnt points with learnt soft labels are run beside it. They name two classes, but two soft labels
can describe three (Sucholutsky and Schonlau, "'Less than one'-shot learning", 2020), and do: of
training afresh on them nothing is claimed.

Vicol, Lorraine, Pedregosa, Duvenaud and Grosse, "On implicit bias in overparameterized bilevel
optimization" (2022), table 2 and sections 4 and 5.
"""

from collections.abc import Callable
from typing import NamedTuple

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
    soft_cross_entropy,
    train,
)
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem, ImplicitDifferentiation
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


# -- few outer variables -----------------------------------------------------------------------

# Directions of the three classes, their distance from the origin, and their spread.
ANGLES = jnp.pi / 2 + 2 * jnp.pi / 3 * jnp.arange(3)
RADIUS, SPREAD = 1.5, 0.35
UNITS = 64
# Step of the network's gradient descent, and the number of them when it is trained afresh.
RATE, AFRESH = 0.1, 2000
# Step of the outer variables: long enough for a point to walk round the circle and come back
# before the network has forgotten what it was shown there.
OUTER_RATE = 0.3


def plane(count: int, seed: int) -> dict:
    """So many points of each of three classes."""
    classes = np.repeat(np.arange(3), count)
    centres = RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
    noise = SPREAD * np.random.default_rng(seed).normal(size=(len(classes), 2))
    return {"x": jnp.asarray(centres[classes] + noise, jnp.float32), "y": jnp.asarray(classes)}


def network(key: jax.Array) -> dict:
    """One hidden layer."""
    into, outof = jax.random.split(key)
    return {
        "into": jax.random.normal(into, (2, UNITS), jnp.float32),
        "shift": jnp.zeros(UNITS, jnp.float32),
        "outof": 0.3 * jax.random.normal(outof, (UNITS, 3), jnp.float32) / np.sqrt(UNITS),
        "bias": jnp.zeros(3, jnp.float32),
    }


def network_scores(w: dict, x: jax.Array) -> jax.Array:
    """Scores of the three classes, shape `(n, 3)`."""
    return jnp.tanh(x @ w["into"] + w["shift"]) @ w["outof"] + w["bias"]


def two_points(hparams: dict) -> tuple[jax.Array, jax.Array]:
    """Two training points, and a distribution over the classes for each."""
    return hparams["points"], jax.nn.softmax(hparams["labels"])


def on_a_circle(angle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The training point in that direction, and the classes by how near their directions are."""
    point = RADIUS * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    return point[None], jax.nn.softmax(6 * jnp.cos(angle - ANGLES))[None]


class Few(NamedTuple):
    """Hyperparameters `start`, and the training set that they stand for."""

    training_set: Callable
    start: dict | jax.Array

    def problem(self) -> BilevelProblem:
        """Train on that set, test on points of all classes."""

        def inner(w: dict, hparams: dict, batch: None) -> jax.Array:
            x, targets = self.training_set(hparams)
            return soft_cross_entropy(network_scores(w, x), targets)

        def outer(w: dict, hparams: dict, batch: dict) -> jax.Array:
            targets = jax.nn.one_hot(batch["y"], 3)
            return soft_cross_entropy(network_scores(w, batch["x"]), targets)

        return BilevelProblem(inner, outer)


FEW = {
    "two points": Few(
        two_points,
        {
            "points": jnp.asarray([[0.3, 0.0], [-0.3, 0.0]], jnp.float32),
            "labels": jnp.asarray([[0.5, 0, 0], [0, 0.5, 0]], jnp.float32),
        },
    ),
    "one scalar": Few(on_a_circle, jnp.asarray(0.3, jnp.float32)),
}


def recall(w: dict, batch: dict) -> np.ndarray:
    """Percent right of each class."""
    right = np.asarray(jnp.argmax(network_scores(w, batch["x"]), axis=1) == batch["y"])
    return np.array([100 * right[np.asarray(batch["y"]) == c].mean() for c in range(3)])


def remembered(few: Few, steps: int, draws: int, seed: int) -> list[dict]:
    """For each draw of data and weights: what the warm pair knows, and what its training set does.

    "named" are the classes that are some training point's likeliest; there are always others. The
    "worst class" is the one of the lowest accuracy, of each network its own.
    """
    problem = few.problem()
    estimator = ImplicitDifferentiation(
        OptaxSolver(optax.sgd(RATE), steps=1), Neumann(products=1, step=RATE), error_estimate=False
    )
    algorithm = Alternating(estimator, optax.adam(OUTER_RATE))
    slope = jax.grad(problem.inner)

    @jax.jit
    def afresh(w: dict, hparams: dict) -> dict:
        def step(w: dict, _: None) -> tuple[dict, None]:
            return jax.tree.map(lambda a, b: a - RATE * b, w, slope(w, hparams, None)), None

        return jax.lax.scan(step, w, None, length=AFRESH)[0]

    rows = []
    for draw in range(draws):
        data, test = plane(60, 2 * (seed + draw)), plane(300, 2 * (seed + draw) + 1)
        first, second = jax.random.split(jax.random.key(seed + draw))
        result = run(
            problem, algorithm, network(first), few.start, None, data, steps=steps, every=steps
        )
        named = np.unique(np.argmax(few.training_set(result.hparams)[1], axis=1))
        joint, alone = (
            recall(w, test) for w in (result.params, afresh(network(second), result.hparams))
        )
        rows.append(
            {
                "draw": draw,
                "classes named": ", ".join(map(str, named)),
                "accuracy %": joint.mean(),
                "worst class %": joint.min(),
                "trained afresh %": alone.mean(),
                "afresh, worst class %": alone.min(),
            }
        )
    return rows


# -- the experiment ----------------------------------------------------------------------------


@experiment(
    paper="Vicol, Lorraine, Pedregosa, Duvenaud and Grosse 2022, arXiv:2212.14032",
    options=[
        Option("cold_steps", 400, quick=300, help="outer steps of the cold start"),
        Option("warm_steps", 4000, quick=1500, help="outer steps of the warm starts"),
        Option("inner_steps", 100, help="training steps of a cold start"),
        Option("real", 2000, quick=1000, help="real images of the outer loss"),
        Option("few_steps", 2000, help="outer steps with few outer variables"),
        Option("draws", 5, help="of data and weights with few outer variables"),
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
        Claim(
            "points_worst",
            "two points, which name two of three classes, warm start: accuracy on the worst class, "
            "median over draws, %",
            at_least=90.0,
        ),
        Claim(
            "scalar_worst", "one scalar, the same: accuracy on the worst class, %", at_least=90.0
        ),
        Claim(
            "scalar_drop",
            "one scalar: points of the worst class lost by training afresh, median over draws",
            at_least=50.0,
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
    with context.progress("runs", total=len(runs) + len(FEW)) as bar:
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
        few = {}
        for name, each in FEW.items():
            few[name] = remembered(each, options.few_steps, options.draws, options.seed)
            bar.advance(incumbent=few[name][-1]["accuracy %"])
    context.table(
        "three classes, few outer variables",
        [{"outer variables": name, **row} for name, each in few.items() for row in each],
    )
    worst, afresh_worst = (
        {name: np.array([row[column] for row in few[name]]) for name in FEW}
        for column in ("worst class %", "afresh, worst class %")
    )
    context.measure("points_worst", float(np.median(worst["two points"])))
    context.measure("scalar_worst", float(np.median(worst["one scalar"])))
    lost_afresh = worst["one scalar"] - afresh_worst["one scalar"]
    context.measure("scalar_drop", float(np.median(lost_afresh)))
    context.table("test accuracy of a linear classifier, ten synthetic images", rows)
    context.plot("outer_loss", curves, x="outer steps", y="loss on real images", x_scale="log")
    context.measure("warm_joint", joint["warm, K = 20"])
    context.measure("warm_drop", lost["warm, K = 20"])
    context.measure("cold", joint["cold"] - lost["cold"])
    context.measure("ridge", lost["warm, K = 20, inner L2"] / lost["warm, K = 20"])
    context.measure("damping", max(filter_distance(products) for products in (5, 20, 100)))


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
