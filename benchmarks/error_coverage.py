"""How well the error estimate of implicit hypergradients covers the true error.

    python -m benchmarks.error_coverage --out DIR

Four problems with a known truth (the inner solution by Newton's method to rounding error, every
matrix formed, float64), several seeds, inner solvers stopped from 5 steps to convergence, linear
solves from one digit to ten. Prints a table, writes DIR/error_coverage.json, exits with status 1
if fewer than 95 % of the true errors are covered or the median of estimate / truth exceeds 30.
An infinite estimate covers, but is left out of the median and counted apart.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from hypergrad import CG, BilevelProblem, ImplicitDifferentiation, Newton, OptaxSolver

STEPS = (5, 10, 20, 50, 100, 300, 1000, 3000, 10000, 100000)
TOLERANCES = (1e-1, 1e-2, 1e-4, 1e-10)


def ridge(rng: np.random.Generator) -> tuple:
    """Linear regression, correlated features, one log penalty per feature."""
    x = rng.normal(size=(80, 15)) @ np.diag(np.geomspace(1, 0.05, 15)) @ rng.normal(size=(15, 15))
    x /= np.linalg.norm(x, 2) / np.sqrt(80)
    y = x @ rng.normal(size=15) + 0.3 * rng.normal(size=80)

    def loss(w, lam, batch):
        return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)

    def inner(w, lam, batch):
        return loss(w, lam, batch) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    data = (jnp.asarray(x[:40]), jnp.asarray(y[:40])), (jnp.asarray(x[40:]), jnp.asarray(y[40:]))
    lam = jnp.asarray(rng.normal(size=15) - 4)
    return BilevelProblem(inner, loss), jnp.zeros(15), lam, *data, 0.5


def logistic(rng: np.random.Generator) -> tuple:
    """Multinomial logistic regression, one log penalty per weight."""
    x = rng.normal(size=(200, 10)) * np.geomspace(2, 0.2, 10)
    y = np.argmax(x @ rng.normal(size=(10, 4)) + rng.gumbel(size=(200, 4)), axis=1)

    def loss(w, lam, batch):
        logits = jax.nn.log_softmax(batch[0] @ w)
        return -jnp.mean(jnp.take_along_axis(logits, batch[1][:, None], axis=1))

    def inner(w, lam, batch):
        return loss(w, lam, batch) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    data = (
        (jnp.asarray(x[:100]), jnp.asarray(y[:100])),
        (jnp.asarray(x[100:]), jnp.asarray(y[100:])),
    )
    lam = jnp.asarray(0.5 * rng.normal(size=(10, 4)) - 4)
    return BilevelProblem(inner, loss), jnp.zeros((10, 4)), lam, *data, 0.5


def example_weights(rng: np.random.Generator) -> tuple:
    """Robust regression, one weight per training example and a Huber width."""
    x = rng.normal(size=(60, 8))
    y = x @ rng.normal(size=8) + rng.standard_t(2, size=60)

    def huber(r, width):
        return width**2 * (jnp.sqrt(1 + (r / width) ** 2) - 1)

    def inner(w, lam, batch):
        residual = batch[0] @ w - batch[1]
        losses = jax.nn.sigmoid(lam["weights"]) * huber(residual, jnp.exp(lam["width"]))
        return jnp.mean(losses) + 0.005 * jnp.sum(w**2)

    def outer(w, lam, batch):
        return jnp.mean(huber(batch[0] @ w - batch[1], 1.0))

    data = (jnp.asarray(x[:30]), jnp.asarray(y[:30])), (jnp.asarray(x[30:]), jnp.asarray(y[30:]))
    lam = {"weights": jnp.asarray(rng.normal(size=30)), "width": jnp.asarray(-0.5)}
    return BilevelProblem(inner, outer), jnp.zeros(8), lam, *data, 1.0


def network(rng: np.random.Generator) -> tuple:
    """A tanh network from a start near one of its minima, a log penalty per layer."""
    x = rng.normal(size=(60, 3))
    y = np.sin(x[:, 0]) + 0.3 * x[:, 1] ** 2

    def predict(p, x):
        return (jnp.tanh(x @ p["a"] + p["b"]) @ p["c"])[:, 0]

    def outer(p, lam, batch):
        return jnp.mean((predict(p, batch[0]) - batch[1]) ** 2)

    def inner(p, lam, batch):
        penalty = sum(jnp.exp(lam[name]) * jnp.sum(p[name] ** 2) for name in p)
        return outer(p, lam, batch) + penalty

    params = {
        "a": jnp.asarray(0.7 * rng.normal(size=(3, 5))),
        "b": jnp.asarray(0.3 * rng.normal(size=5)),
        "c": jnp.asarray(0.7 * rng.normal(size=(5, 1))),
    }
    data = (jnp.asarray(x[:30]), jnp.asarray(y[:30])), (jnp.asarray(x[30:]), jnp.asarray(y[30:]))
    lam = {"a": jnp.asarray(-5.0), "b": jnp.asarray(-4.0), "c": jnp.asarray(-4.5)}
    problem = BilevelProblem(inner, outer)
    star = eqx.filter_jit(Newton(max_steps=300).run)(problem, params, lam, data[0]).params
    start = jax.tree.map(lambda a: a + 0.05 * jnp.asarray(rng.normal(size=a.shape)), star)
    return problem, start, lam, *data, 0.3


def dense(problem, params, lam, train, valid):
    """The hypergradient with every matrix formed, flat."""
    w, unravel_w = ravel_pytree(params)
    h, unravel_h = ravel_pytree(lam)

    def residual(w, h):
        return ravel_pytree(problem.residual(unravel_w(w), unravel_h(h), train))[0]

    hessian = jax.jacobian(residual, 0)(w, h)
    mixed = jax.jacobian(residual, 1)(w, h)
    outer = lambda w, h: problem.outer(unravel_w(w), unravel_h(h), valid)  # noqa: E731
    g, direct = jax.grad(outer, (0, 1))(w, h)
    return direct - mixed.T @ jnp.linalg.solve(hessian, g)


def measure(make: Callable, seeds: int) -> list[dict[str, float]]:
    """A row for every seed, number of inner steps and linear tolerance."""
    rows = []
    problem = None
    for seed in range(seeds):
        fresh, start, lam, train, valid, rate = make(np.random.default_rng(seed))
        if problem is None:
            # The losses take all data as arguments: one program serves all seeds.
            problem = fresh
            estimator = ImplicitDifferentiation(
                OptaxSolver(optax.sgd(rate), jnp.asarray(5)), CG(tol=jnp.asarray(0.1))
            )

            @eqx.filter_jit
            def truth(start, lam, train, valid, problem=problem):
                star = Newton(max_steps=300).run(problem, start, lam, train).params
                return dense(problem, star, lam, train, valid)

            @eqx.filter_jit
            def estimate(steps, tol, start, lam, train, valid, problem=problem, base=estimator):
                chosen = eqx.tree_at(
                    lambda e: (e.solver.steps, e.linear_solver.tol), base, (steps, tol)
                )
                state = chosen.init(problem, start, lam, train)
                state, _ = chosen.fit(problem, state, lam, train)
                out = chosen.hypergradient(problem, state, lam, train, valid)
                return ravel_pytree(out.grad)[0], out.info.error

        exact = truth(start, lam, train, valid)
        for steps in STEPS:
            for tol in TOLERANCES:
                grad, error = estimate(
                    jnp.asarray(steps), jnp.asarray(tol), start, lam, train, valid
                )
                true = float(jnp.linalg.norm(grad - exact) / jnp.linalg.norm(grad))
                row = {"seed": seed, "steps": steps, "tol": tol}
                rows.append({**row, "true": true, "estimate": float(error)})
    return rows


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Coverage, the median ratio of the finite estimates, and how many are infinite."""
    true = np.array([row["true"] for row in rows])
    estimate = np.array([row["estimate"] for row in rows])
    finite = np.isfinite(estimate)
    return {
        "cases": len(rows),
        "covered": float(np.mean(estimate >= true)),
        "median ratio": float(np.median(estimate[finite] / true[finite])),
        "infinite": float(np.mean(~finite)),
    }


def main() -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    began = time.time()
    results = {}
    everything = []
    for make in (ridge, logistic, example_weights, network):
        rows = measure(make, options.seeds)
        everything += rows
        results[make.__name__] = {"summary": summary(rows), "rows": rows}
        print(f"{make.__name__}: {len(rows)} cases, {time.time() - began:.0f} s", flush=True)
    total = summary(everything)
    by_steps = {s: summary([r for r in everything if r["steps"] == s]) for s in STEPS}

    header = f"{'':<16} {'cases':>6} {'covered':>8} {'median ratio':>13} {'infinite':>9}"
    print(header)
    named = {name: result["summary"] for name, result in results.items()}
    named |= {f"{steps} steps": row for steps, row in by_steps.items()}
    for name, row in {**named, "all": total}.items():
        print(
            f"{name:<16} {row['cases']:>6} {row['covered']:>8.3f} {row['median ratio']:>13.2f} "
            f"{row['infinite']:>9.3f}"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "all": total,
        "by_steps": by_steps,
        "problems": results,
        "seconds": time.time() - began,
        "jax": jax.__version__,
    }
    (options.out / "error_coverage.json").write_text(json.dumps(report, indent=1))
    return 0 if total["covered"] >= 0.95 and total["median ratio"] <= 30 else 1


if __name__ == "__main__":
    sys.exit(main())
