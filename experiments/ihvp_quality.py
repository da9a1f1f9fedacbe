"""How good is each approximate inverse Hessian? Cosine and error of the hypergradient it gives.

Two inner problems. *Logistic*: breast_cancer with one L2 penalty for each of 30 features, solved to
rounding, well conditioned. *Network* (not with `--quick`): a 64-8-10 network on digits with one
weight for each training example, 610 parameters, damping 1e-3, trained until the damped Hessian is
positive definite. For each linear solver and each number of Hessian-vector products, the
hypergradient is compared with that of a dense solve of the same (damped) system. Solvers that draw
a sketch are repeated over several keys.

The claims are those of the paper, and what its lemma says exactly: at a stationary point the
Neumann series with K products is the derivative of K + 1 unrolled steps of gradient descent.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.data import tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad.linear import CG, Identity, LinearSolver, Neumann, Nystrom, symmetric_operator


class Case(NamedTuple):
    """An inner problem at its point: everything that a hypergradient needs, on flat vectors."""

    name: str
    inner: Callable[[Array, Array], Array]
    params: Array
    hparams: Array
    hessian: Array
    gradient: Array
    products: tuple[int, ...]

    @property
    def exact(self) -> Array:
        """The hypergradient of a dense solve."""
        return self.pull(jnp.linalg.solve(self.hessian, self.gradient))

    def pull(self, q: Array) -> Array:
        """`-Cᵀ q`."""
        _, pull = jax.vjp(lambda h: jax.grad(self.inner)(self.params, h), self.hparams)
        return -pull(q)[0]


def logistic(seed: int) -> Case:
    """Logistic regression with a penalty for each feature, solved by Newton's method."""
    data = tabular("breast_cancer", seed=seed)
    mean, scale = data.train.x.mean(axis=0), data.train.x.std(axis=0)
    x, xv = (jnp.asarray((part.x - mean) / scale) for part in (data.train, data.validation))
    y, yv = (jnp.asarray(2.0 * part.y - 1) for part in (data.train, data.validation))

    def loss(w: Array, x: Array, y: Array) -> Array:
        return jnp.mean(jnp.logaddexp(0, -y * (x @ w)))

    def inner(w: Array, h: Array) -> Array:
        return loss(w, x, y) + 0.5 * jnp.sum(jnp.exp(h) * w**2)

    h = jnp.full(x.shape[1], -2.0)
    hessian, gradient = jax.jit(jax.hessian(inner)), jax.jit(jax.grad(inner))
    w = jnp.zeros(x.shape[1])
    for _ in range(12):
        w = w - jnp.linalg.solve(hessian(w, h), gradient(w, h))
    counts = (1, 2, 3, 5, 10, 20, 50)
    return Case("logistic", inner, w, h, hessian(w, h), jax.grad(loss)(w, xv, yv), counts)


def network(seed: int, units: int, examples: int) -> Case:
    """A small network with a weight for each example, after full-batch gradient descent."""
    data = tabular("digits", seed=seed)
    x, xv = (jnp.asarray(part.x / 16.0) for part in (data.train, data.validation))
    y, yv = (jnp.asarray(part.y) for part in (data.train, data.validation))
    x, y = x[:examples], y[:examples]
    pixels, count = 64 * units, 75 * units + 10

    def losses(w: Array, x: Array, y: Array) -> Array:
        first, second = w[:pixels].reshape(64, units), w[-10 - 10 * units : -10].reshape(units, 10)
        hidden = jnp.tanh(x @ first + w[pixels : pixels + units])
        scores = jax.nn.log_softmax(hidden @ second + w[-10:])
        return -jnp.take_along_axis(scores, y[:, None], axis=1)[:, 0]

    def inner(w: Array, h: Array) -> Array:
        return 2 * jnp.mean(jax.nn.sigmoid(h) * losses(w, x, y)) + 0.5e-3 * jnp.sum(w**2)

    h = jnp.zeros(len(x))
    w = jax.random.normal(jax.random.key(seed), (count,)) * 0.3

    @jax.jit
    def train(w: Array) -> Array:
        return jax.lax.fori_loop(0, 20_000, lambda _, w: w - 0.5 * jax.grad(inner)(w, h), w)

    w = train(w)
    hessian = jax.jit(jax.hessian(inner))(w, h) + 1e-3 * jnp.eye(count)
    gradient = jax.grad(lambda w: jnp.mean(losses(w, xv, yv)))(w)
    return Case("network", inner, w, h, hessian, gradient, (10, 20, 50, 200))


@eqx.filter_jit
def solve(solver: LinearSolver, hessian: Array, gradient: Array) -> Array:
    """The adjoint by `solver`; the Hessian is an argument, so that problems share a program."""
    return solver.solve(symmetric_operator(lambda v: hessian @ v), gradient).value


def unrolled(case: Case, steps: int, step: Array) -> Array:
    """Derivative of the outer loss through `steps` steps of gradient descent from the point."""

    def end(h: Array) -> Array:
        return jax.lax.fori_loop(
            0, steps, lambda _, w: w - step * jax.grad(case.inner)(w, h), case.params
        )

    # Forward over each hyperparameter: a loop of fixed length, and few of them.
    return jax.jacfwd(end)(case.hparams).T @ case.gradient


def compare(estimate: Array, exact: Array) -> tuple[float, float]:
    """Cosine, and relative error."""
    size = jnp.linalg.norm(exact)
    cosine = estimate @ exact / (jnp.linalg.norm(estimate) * size)
    return float(cosine), float(jnp.linalg.norm(estimate - exact) / size)


def solvers(step: Array, damping: float) -> dict[str, Callable[[int, Array], LinearSolver]]:
    """Each method, as a function of the products that it may spend and a random key."""

    def nystrom(sketch: Any, products: int, key: Array) -> LinearSolver:
        return Nystrom(products, damping, sketch=sketch, key=key)

    return {
        "CG": lambda k, key: CG(tol=0.0, max_steps=jnp.asarray(k)),
        "Neumann": lambda k, key: Neumann(k, step=step),
        "Nyström, columns": partial(nystrom, "columns"),
        "Nyström, Gaussian": partial(nystrom, "gaussian"),
        "identity": lambda k, key: Identity(step),
    }


Quality = dict[str, tuple[list[float], list[float]]]


def measure(case: Case, seeds: int, progress: Any) -> Quality:
    """Median cosine and error of each method at each number of products."""
    exact = case.exact
    largest = jnp.linalg.eigvalsh(case.hessian)[-1]
    found: Quality = {}
    for name, build in solvers(1 / largest, 0.01).items():
        cosines, errors = [], []
        for products in case.products:
            draws = seeds if name.startswith("Nyström") else 1
            quality = [
                compare(case.pull(solve(build(products, key), case.hessian, case.gradient)), exact)
                for key in jax.random.split(jax.random.key(1), draws)
            ]
            cosine, error = np.median(np.asarray(quality), axis=0)
            cosines.append(float(cosine))
            errors.append(float(error))
            progress.advance()
        found[name] = cosines, errors
    return found


@experiment(
    paper="Lorraine, Vicol & Duvenaud 2020, arXiv:1911.02590",
    x64=True,
    options=[
        Option("units", 8, quick=4, help="hidden units of the network"),
        Option("examples", 500, quick=200, help="its training examples"),
        Option("seeds", 5, quick=2, help="sketches per Nyström estimate"),
        Option("split", 0, help="split of the data, and initial weights of the network"),
    ],
    claims=[
        Claim(
            "rising",
            "more Neumann terms never turn the hypergradient away (smallest change of cosine)",
            at_least=-1e-9,
        ),
        Claim(
            "lemma",
            "Neumann with K products is the derivative of K + 1 unrolled steps (relative)",
            at_most=1e-9,
        ),
        Claim(
            "cg",
            "CG's error is at most Neumann's at equal products, from 3 on (largest ratio)",
            at_most=1.0,
        ),
        Claim("ten", "ten CG products on the logistic problem: relative error", at_most=1e-2),
        Claim("identity", "one Neumann product beats the identity (gain in cosine)", at_least=0.0),
        Claim(
            "definite",
            "the damped Hessian of the network is positive definite (smallest eigenvalue)",
            at_least=0.0,
        ),
        Claim(
            "network",
            "CG with 50 products on the network: cosine",
            at_least=0.95,
        ),
        Claim(
            "best",
            "at every number of products CG's cosine on the network is the highest (margin)",
            at_least=0.0,
        ),
    ],
)
def run(context: Context) -> None:
    """Measure, draw, and check the claims."""
    options = context.options
    cases = [
        logistic(options.split),
        network(options.split, options.units, options.examples),
    ]
    results = {}
    with context.progress("estimates", total=5 * sum(len(c.products) for c in cases)) as progress:
        for case in cases:
            results[case.name] = measure(case, options.seeds, progress)
    for case in cases:
        found = results[case.name]
        for quantity, index in (("cosine", 0), ("error", 1)):
            curves = {n: Curve(x=case.products, y=both[index]) for n, both in found.items()}
            context.plot(f"{case.name} {quantity}", curves, x="products", y=quantity)
        context.table(
            case.name,
            [
                {"method": name, "products": k, "cosine": cosine, "error": error}
                for name, (cosines, errors) in found.items()
                for k, cosine, error in zip(case.products, cosines, errors, strict=True)
            ],
        )

    simple, found = cases[0], results["logistic"]
    context.measure("rising", float(np.min(np.diff(found["Neumann"][0]))))
    step = 1 / jnp.linalg.eigvalsh(simple.hessian)[-1]
    gaps = []
    for products in (0, 1, 5):
        series = simple.pull(solve(Neumann(products, step=step), simple.hessian, simple.gradient))
        gaps.append(compare(series, unrolled(simple, products + 1, step))[1])
    context.measure("lemma", max(gaps))
    ratios = [
        cg / neumann
        for k, cg, neumann in zip(simple.products, found["CG"][1], found["Neumann"][1], strict=True)
        if k >= 3
    ]
    context.measure("cg", max(ratios))
    context.measure("ten", found["CG"][1][simple.products.index(10)])
    context.measure("identity", found["Neumann"][0][0] - found["identity"][0][0])
    found = results["network"]
    context.measure("definite", float(jnp.linalg.eigvalsh(cases[1].hessian)[0]))
    context.measure("network", found["CG"][0][cases[1].products.index(50)])
    others = [both[0] for name, both in found.items() if name != "CG"]
    context.measure("best", float(np.min(np.asarray(found["CG"][0]) - np.asarray(others))))


if __name__ == "__main__":
    raise SystemExit(run.main())
