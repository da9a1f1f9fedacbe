"""How many inner steps: solutions of the T-step problem on their way to the bilevel solution.

Where the inner solution is replaced by T steps of gradient descent, the solutions of the problem
that is left tend to those of the bilevel problem as T grows (Franceschi et al. 2018, theorem 3.2,
for inner solutions that are unique and approached uniformly). Here the rate is known, too. The
inner steps contract by a factor q, so that the hypergradient through T of them is off by T q^T,
its root by as much, and the exact outer loss there, which is least at the bilevel solution, by the
square of it.

The problem is a representation with an exact solution: the ten features of the diabetes data,
decorrelated, are scaled by the outer variable, and a ridge regression on them is the inner problem.
The bilevel solution comes from dense solves in float64, those of the T-step problems from the root
of the unrolled hypergradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jaxtyping import Array, Float, Scalar

from experiments.data import tabular
from experiments.data.tabular import Part
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem
from hypergrad.unrolled import Unrolled

# Penalty of the regression, and, so that scales of useless features stay finite, of the logarithms.
RIDGE, PRIOR = 0.3, 0.1
# Below one over the largest eigenvalue of the inner Hessian for all scales on the way.
STEP = 0.1
# From where the slowest direction decides, as long as the excess can be told from rounding.
SPACING = 30


def inner(w: Float[Array, " d"], log_scales: Float[Array, " d"], batch: tuple) -> Scalar:
    """Ridge regression on scaled features."""
    x, y = batch
    error = x @ (jnp.exp(log_scales) * w) - y
    return jnp.mean(error**2) / 2 + RIDGE / 2 * jnp.sum(w**2)


def outer(w: Float[Array, " d"], log_scales: Float[Array, " d"], batch: tuple) -> Scalar:
    """Mean squared error on the validation set, and the prior of the scales."""
    x, y = batch
    error = x @ (jnp.exp(log_scales) * w) - y
    return jnp.mean(error**2) / 2 + PRIOR / 2 * jnp.sum(log_scales**2)


PROBLEM = BilevelProblem(inner, outer)


def hessian(log_scales: Float[Array, " d"], x: Float[Array, "n d"]) -> Float[Array, "d d"]:
    """Second derivative of the inner loss by the weights."""
    scaled = x * jnp.exp(log_scales)
    return scaled.T @ scaled / len(x) + RIDGE * jnp.eye(x.shape[1])


def exact(log_scales: Float[Array, " d"], train: tuple, valid: tuple) -> Scalar:
    """The outer loss at the inner solution, by a dense solve."""
    x, y = train
    right = (x * jnp.exp(log_scales)).T @ y / len(x)
    return outer(jnp.linalg.solve(hessian(log_scales, x), right), log_scales, valid)


def decorrelated(part: Part, train: Part) -> tuple[Array, Array]:
    """Features of unit covariance, target of unit variance, mean 0, by the training set."""
    _, singular, axes = np.linalg.svd(train.x - train.x.mean(0), full_matrices=False)
    x = (part.x - train.x.mean(0)) @ axes.T / singular * np.sqrt(len(train.x))
    return jnp.asarray(x), jnp.asarray((part.y - train.y.mean()) / train.y.std())


def rate(steps: np.ndarray, values: np.ndarray) -> float:
    """The slope of log values over steps."""
    return float(np.polyfit(steps, np.log(values), 1)[0])


@experiment(
    paper="Franceschi, Frasconi, Salzo, Grazzi and Pontil 2018, arXiv:1806.04910, theorem 3.2",
    x64=True,
    compiles=True,
    options=[Option("lengths", 4, quick=3, help=f"lengths, {SPACING} steps apart")],
    claims=[
        Claim(
            "solution",
            "distance to the bilevel solution, over T: its rate over log q, |ratio - 1|",
            at_most=0.1,
        ),
        Claim(
            "loss",
            "excess of the exact outer loss, over T²: its rate over 2 log q, |ratio - 1|",
            at_most=0.1,
        ),
        Claim(
            "falls",
            f"distance to the bilevel solution over that with {SPACING} steps less, largest",
            at_most=0.5,
        ),
    ],
)
def run(context: Context) -> None:
    """The bilevel solution, then the T-step solutions."""
    options = context.options
    data = tabular("diabetes", seed=options.seed)
    train, valid = (decorrelated(part, data.train) for part in data[:2])
    size = train[0].shape[1]
    value, slope = jax.jit(exact), jax.jit(jax.grad(exact))
    solution = root(lambda h: slope(h, train, valid), np.zeros(size))
    least = float(value(solution, train, valid))
    contraction = 1 - STEP * float(jnp.linalg.eigvalsh(hessian(solution, train[0]))[0])

    lengths = SPACING * np.arange(1, options.lengths + 1)
    rows, start = [], np.zeros(size)
    with context.progress("lengths", total=len(lengths)) as progress:
        for steps in lengths:
            unrolled = Unrolled(optax.sgd(STEP), int(steps))
            state = unrolled.init(PROBLEM, jnp.zeros(size), jnp.zeros(size), train)
            hypergradient = jax.jit(
                lambda h, u=unrolled, s=state: u.hypergradient(PROBLEM, s, h, train, valid).grad
            )
            start = root(hypergradient, start)
            rows.append(
                {
                    "steps": int(steps),
                    "distance": float(np.linalg.norm(start - solution)),
                    "excess": float(value(start, train, valid)) - least,
                }
            )
            progress.advance()
    context.table("T-step solutions", rows)
    distances, excesses = (np.array([row[key] for row in rows]) for key in ("distance", "excess"))
    slowest = distances[-1] * np.exp(np.log(contraction) * (lengths - lengths[-1]))
    context.plot(
        "convergence",
        {
            "distance to the bilevel solution": Curve(lengths, distances),
            "excess of the exact outer loss": Curve(lengths, excesses),
            "T qᵀ": Curve(lengths, slowest * lengths / lengths[-1]),
        },
        x="inner steps T",
        y="",
        y_scale="log",
    )
    by_distance = rate(lengths, distances / lengths)
    by_loss = rate(lengths, excesses / lengths**2)
    context.say(f"q = {contraction:.4f}; log q = {np.log(contraction):.5f}.")
    context.measure("solution", abs(by_distance / np.log(contraction) - 1))
    context.measure("loss", abs(by_loss / (2 * np.log(contraction)) - 1))
    context.measure("falls", np.max(distances[1:] / distances[:-1]))


def root(gradient: Callable, start: np.ndarray) -> np.ndarray:
    """Where a gradient vanishes, by MINPACK's hybrid method.

    **Raises:** `ValueError` if none is found.
    """
    found = scipy.optimize.root(lambda h: np.asarray(gradient(h)), start, tol=1e-13)
    if np.max(np.abs(found.fun)) > 1e-10:
        raise ValueError(f"no root: {found.message} ({np.max(np.abs(found.fun)):.1e}).")
    return found.x


if __name__ == "__main__":
    raise SystemExit(run.main())
