"""Bilevel problems over mini-batches, with the value function that methods are judged by.

A method is judged by its hyperparameters alone: `value(hparams)` is the outer loss at the inner
solution, found anew to high accuracy, so that params which lean towards the outer loss (as those of
penalty methods do) gain nothing by it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import ortho_group

from experiments.data.fashion_mnist import fashion_mnist
from experiments.data.tabular import tabular
from hypergrad import BilevelProblem
from hypergrad.outer import Box


class Task(NamedTuple):
    """A problem, its data and start, what judges it, and the scales of a method's steps.

    - `value`: the outer loss at the inner solution; of the quadratics, above its least value.
    - `batch`: rows of a mini-batch.
    - `inner_step`, `outer_step`: what the trials scale.
    """

    problem: BilevelProblem
    train: dict
    validation: dict
    params: jax.Array
    hparams: jax.Array
    value: Callable[[np.ndarray], float]
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
    return jnp.mean(weights * losses(w, batch)) + 1e-3 * jnp.sum(w**2)


def clean(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
    """All validation examples count alike."""
    return jnp.mean(losses(w, batch))


@jax.jit
def cleaned(hparams: jax.Array, train: dict, validation: dict) -> jax.Array:
    """The outer loss after 150 accelerated steps from zero on all of the weighted data."""
    slope = jax.grad(weighted)

    def step(carry: tuple, k: jax.Array) -> tuple[tuple, None]:
        w, before = carry
        ahead = w + k / (k + 3) * (w - before)
        return (ahead - slope(ahead, hparams, train), w), None

    zero = jnp.zeros((train["x"].shape[1], 10))
    (w, _), _ = jax.lax.scan(step, (zero, zero), jnp.arange(150.0))
    return clean(w, hparams, validation)


def cleaning(seed: int, quick: bool) -> Task:
    """One weight per image of Fashion-MNIST at 14 × 14 pixels, half of whose labels are random."""
    count, held = (512, 256) if quick else (1024, 512)
    rng = np.random.default_rng(seed)
    source, _ = fashion_mnist()
    rows = rng.permutation(len(source.y))[: count + held]
    images = source.x[rows].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(len(rows), -1)
    # Scaled so that a unit step nearly descends.
    x = np.concatenate([images / (255 * 4), np.ones((len(rows), 1))], axis=1).astype(np.float32)
    y = source.y[rows].astype(np.int32)
    labels = y[:count].copy()
    touched = rng.random(count) < 0.5
    labels[touched] = rng.integers(0, 10, touched.sum())
    train = {"x": jnp.asarray(x[:count]), "y": jnp.asarray(labels), "index": jnp.arange(count)}
    validation = {"x": jnp.asarray(x[count:]), "y": jnp.asarray(y[count:])}
    return Task(
        BilevelProblem(weighted, clean),
        train,
        validation,
        jnp.zeros((x.shape[1], 10), jnp.float32),
        jnp.zeros(count, jnp.float32),
        value=lambda h: float(cleaned(jnp.asarray(h, jnp.float32), train, validation)),
        batch=64,
        inner_step=0.5,
        outer_step=50.0,
        constraint=Box(-6.0, 6.0),
    )


def logistic(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
    """Logistic loss, labels -1 and 1."""
    return jnp.mean(jnp.logaddexp(0, -batch["y"] * (batch["x"] @ w)))


def penalised(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
    """The same with a penalty for each weight."""
    return logistic(w, hparams, batch) + 0.5 * jnp.sum(jnp.exp(hparams) * w**2)


def penalties(seed: int, quick: bool) -> Task:
    """One log-penalty per feature of a logistic regression on breast_cancer."""
    data = tabular("breast_cancer", seed=seed, fractions=(0.4, 0.1))
    mean, spread = data.train.x.mean(0), data.train.x.std(0)

    def part(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        return ((x - mean) / spread)[:count], (2.0 * y - 1)[:count]

    (x, y), (a, b) = part(*data.train, 256), part(*data.validation, 224)

    def value(hparams: np.ndarray) -> float:
        scale = np.exp(np.asarray(hparams, float))

        def inner(w: np.ndarray) -> tuple[float, np.ndarray]:
            margins = y * (x @ w)
            slope = -(y * expit(-margins)) @ x / len(y) + scale * w
            return np.logaddexp(0, -margins).mean() + 0.5 * scale @ w**2, slope

        w = minimize(inner, np.zeros(30), jac=True, tol=1e-10, method="L-BFGS-B").x
        return float(np.logaddexp(0, -b * (a @ w)).mean())

    def arrays(x: np.ndarray, y: np.ndarray) -> dict:
        return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.float32)}

    return Task(
        BilevelProblem(penalised, logistic),
        arrays(x, y),
        arrays(a, b),
        jnp.zeros(30, jnp.float32),
        jnp.zeros(30, jnp.float32),
        value=value,
        batch=32,
        inner_step=0.2,
        outer_step=1.0,
        constraint=Box(-6.0, 1.0),
    )


def quadratic(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
    """`½ ⟨a, w⟩² + ½ ⟨b, λ⟩² + ⟨c, λ⟩ ⟨d, w⟩ + ⟨e, w⟩ + ⟨g, λ⟩`, the mean over examples."""
    of_w, of_h = batch["a"] @ w, batch["b"] @ hparams
    cross = (batch["c"] @ hparams) * (batch["d"] @ w)
    linear = batch["e"] @ w + batch["g"] @ hparams
    return jnp.mean(0.5 * of_w**2 + 0.5 * of_h**2 + cross + linear)


def quadratics(seed: int, quick: bool) -> Task:
    """The simulated problem of benchopt's `benchmark_bilevel`: two sums of quadratics.

    Its construction: the Hessian of an example is `a aᵀ` with `a` normal, whose covariance has a
    random basis and eigenvalues from 0.1 to 1, evenly spaced in the logarithm; so is that in the
    hyperparameters, with one eigenvalue 0; the cross term is `(U S x)(V x)ᵀ` with `x` standard
    normal, random bases and singular values from 0.1 to 0.1; linear terms are standard normal; 64
    examples a batch. Draws whose value function is not convex are drawn again. There 32,768 and
    1,024 examples with 100 params and 10 hyperparameters, here 8,192 and 1,024 (quick: 1,024 and
    256, 20 and 5).
    """
    rng = np.random.default_rng(seed)
    counts, p, q = ((1024, 256), 20, 5) if quick else ((8192, 1024), 100, 10)
    least, most, cross = 0.1, 1.0, 0.1

    def examples(count: int) -> dict:
        def normal(size: int, eigenvalues: np.ndarray) -> np.ndarray:
            basis = ortho_group.rvs(size, random_state=rng)
            return rng.normal(size=(count, size)) @ (basis * np.sqrt(eigenvalues)) @ basis.T

        x = rng.normal(size=(count, p))
        left, right = (ortho_group.rvs(size, random_state=rng) for size in (q, p))
        return {
            "a": normal(p, np.geomspace(least, most, p)),
            "b": normal(q, np.append(0, np.geomspace(least, most, q - 1))),
            "c": x[:, :q] * np.geomspace(least, cross, q) @ left.T,
            "d": x @ right.T,
            "e": rng.normal(size=(count, p)),
            "g": rng.normal(size=(count, q)),
        }

    def moments(data: dict) -> tuple[np.ndarray, ...]:
        n = len(data["a"])
        pairs = [("a", "a"), ("b", "b"), ("c", "d")]
        return (
            *(data[i].T @ data[j] / n for i, j in pairs),
            data["e"].mean(0),
            data["g"].mean(0),
        )

    while True:
        train, validation = (examples(count) for count in counts)
        hessian, _, mixed, linear, _ = moments(train)
        h_w, h_h, c, e, g = moments(validation)
        # w* = offset + response λ, and the value function is a quadratic, too.
        response, offset = -np.linalg.solve(hessian, mixed.T), -np.linalg.solve(hessian, linear)
        curvature = response.T @ h_w @ response + h_h + c @ response + (c @ response).T
        slope = response.T @ (h_w @ offset + e) + c @ offset + g
        if np.linalg.eigvalsh(curvature)[0] > 0:
            break
    best = -np.linalg.solve(curvature, slope)

    def value(hparams: np.ndarray) -> float:
        away = np.asarray(hparams, float) - best
        return float(0.5 * away @ curvature @ away)

    def arrays(data: dict) -> dict:
        return {name: jnp.asarray(x, jnp.float32) for name, x in data.items()}

    return Task(
        BilevelProblem(quadratic, quadratic),
        arrays(train),
        arrays(validation),
        jnp.zeros(p, jnp.float32),
        jnp.ones(q, jnp.float32),
        value=value,
        batch=64,
        inner_step=0.1,
        outer_step=0.1,
        constraint=None,
    )


TASKS = {"quadratics": quadratics, "penalties": penalties, "hyper-cleaning": cleaning}
