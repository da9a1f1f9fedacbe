"""How well the error estimate of hypergradients covers the true error.

    python -m benchmarks.error_coverage --out DIR [--quick] [--only FAMILY ...]

The families of `benchmarks.error_families`, chosen to be unkind, with every linear solver from one
digit to ten, at and near the inner solution; and the unrolled modes in float32. The truth is a
closed form, or comes from Newton's method and every matrix formed, in float64. Prints a table and
the claims, writes DIR/error_coverage.json, and exits with status 1 if a claim fails.

An infinite estimate covers, but is left out of the median. True errors below what the truth itself
is good for count as that.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from benchmarks.error_families import FAMILIES, RIDGE, Case, ridge
from hypergrad import CG, BilevelProblem, ImplicitDifferentiation, Newton
from hypergrad.compiled import doubts
from hypergrad.linear import (
    GMRES,
    MINRES,
    PCG,
    BiCGStab,
    Dense,
    Fallback,
    Identity,
    Neumann,
    NormalCG,
    Nystrom,
    RecyclingCG,
)
from hypergrad.unrolled import ForwardUnrolled, OnlineUnrolled, TruncatedUnrolled, Unrolled

TOLERANCES = (1e-1, 1e-3, 1e-6, 1e-10)
GENERAL = (GMRES(), BiCGStab(), NormalCG(), Dense(), Neumann(), Identity())
SYMMETRIC = (CG(), PCG(), RecyclingCG(), MINRES(), Fallback(), Nystrom(), *GENERAL)
# The targets.
COVERED, EXCEEDED, RATIO, INFINITE, SMALL = 0.99, 3.0, 10.0, 0.02, 0.02


def cast(tree: Any, dtype: Any) -> Any:
    """Every floating-point array in `dtype`."""
    return jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, tree)


def truth_of(problem: BilevelProblem, solved: bool) -> Callable:
    """A program for the solution, the hypergradient by dense matrices, and what both are worth."""

    @eqx.filter_jit
    def truth(start: Any, lam: Any, train: Any, valid: Any, key: Any) -> tuple:
        star = start
        if not solved:
            star = Newton(max_steps=300).run(problem, start, lam, train, key=key).params
        w, unravel_w = ravel_pytree(star)
        h, unravel_h = ravel_pytree(lam)

        def residual(w: Any, h: Any) -> Any:
            return ravel_pytree(problem.residual(unravel_w(w), unravel_h(h), train, key))[0]

        def outer(w: Any, h: Any) -> Any:
            return problem.outer_loss(unravel_w(w), unravel_h(h), valid, key)[0]

        jacobian, mixed = jax.jacobian(residual, 0)(w, h), jax.jacobian(residual, 1)(w, h)
        cotangent, direct = jax.grad(outer, (0, 1))(w, h)
        left, values, right = jnp.linalg.svd(jacobian)
        kept = values > 1e-13 * len(values) * values[0]
        inverse = (right.T * jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)) @ left.T
        condition = values[0] / jnp.min(jnp.where(kept, values, jnp.inf))
        drift = jax.random.normal(jax.random.key(1), w.shape)
        drift = jnp.linalg.solve(jacobian + 1e-3 * values[0] * jnp.eye(len(w)), drift)
        drift = unravel_w(drift / jnp.linalg.norm(drift) * jnp.linalg.norm(w))
        return star, drift, direct - mixed.T @ (inverse.T @ cotangent), condition

    return truth


def estimate_of(problem: BilevelProblem) -> Callable:
    """A program for one hypergradient, its estimated error, and whether `strict` refuses it."""

    @eqx.filter_jit
    def estimate(estimator: Any, w: Any, lam: Any, train: Any, valid: Any, key: Any) -> tuple:
        state = estimator.init(problem, w, lam, train, key=key)
        state, _ = estimator.fit(problem, state, lam, train, key=key)
        out = estimator.hypergradient(problem, state, lam, train, valid, key=key)
        refused = jnp.stack([doubt.holds for doubt in doubts(out.info) if doubt.refuse])
        return ravel_pytree(out.grad)[0], out.info.error, jnp.any(refused)

    return estimate


def row_of(gradient: Any, error: Any, refused: Any, truth: Any, floor: float) -> dict[str, Any]:
    """One case: true and estimated error, and whether a wrong direction was accepted."""
    gradient, truth = (np.asarray(a, float).ravel() for a in (gradient, truth))
    size = float(np.linalg.norm(gradient))
    true = float(np.linalg.norm(gradient - truth))
    true = max(true / size if size > 0 else np.inf if true > 0 else 0.0, floor)
    wrong = bool(gradient @ truth <= 0 < np.linalg.norm(truth)) and not bool(refused)
    return {"true": true, "estimate": float(error), "floor": floor, "wrong accepted": wrong}


def implicit(make: Callable, seeds: int, solvers: int, offset: int) -> Iterator[dict[str, Any]]:
    """The rows of a family: every seed, linear solver, tolerance and distance from the solution."""
    case = make(np.random.default_rng(0))
    wide = cast(case.problem, jnp.float64)
    truth, estimate = truth_of(wide, case.solved), estimate_of(case.problem)
    candidates = SYMMETRIC if case.problem.optimality is None else GENERAL
    chosen = [candidates[(offset + i) % len(candidates)] for i in range(solvers)]
    for seed in range(seeds):
        case: Case = make(np.random.default_rng(seed))
        data = cast((case.hparams, case.train, case.valid), case.dtype)
        known = cast(data, jnp.float64)
        star, drift, exact, condition = truth(case.start, *known, case.key)
        exact = exact if case.truth is None else case.truth
        floor = 1e-14 * float(condition)
        for level in case.levels:
            point = jax.tree.map(lambda a, d, level=level: a + level * d, star, drift)
            point = cast(point, case.dtype)
            for solver in dict.fromkeys(chosen):
                for tol in TOLERANCES if hasattr(solver, "tol") else (None,):
                    own = solver
                    if tol is not None:
                        own = eqx.tree_at(lambda s: s.tol, solver, jnp.asarray(tol))
                    estimator = ImplicitDifferentiation(None, own)
                    out = estimate(estimator, point, *data, case.key)
                    name = type(solver).__name__
                    where = {"seed": seed, "solver": name, "tol": tol, "level": level}
                    yield {**where, **row_of(*out, exact, floor)}


def unrolled(seeds: int) -> Iterator[dict[str, Any]]:
    """Every unrolled mode in float32 against the derivative of the same run in float64."""
    optimizer = optax.sgd(0.3)
    modes = (
        Unrolled(optimizer, steps=50),
        ForwardUnrolled(optimizer, steps=50),
        TruncatedUnrolled(optimizer, steps=50, window=20),
        OnlineUnrolled(optimizer, steps=50),
    )
    estimate = estimate_of(RIDGE)
    for seed in range(seeds):
        case = ridge(np.random.default_rng(seed))
        narrow = cast((case.start, case.hparams, case.train, case.valid), jnp.float32)
        exact, _, _ = estimate(modes[0], *cast(narrow, jnp.float64), None)
        for mode in modes:
            out = estimate(mode, *narrow, None)
            yield {"seed": seed, "solver": type(mode).__name__, **row_of(*out, exact, 1e-12)}


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the claims are about."""
    true, estimate, floor = (
        np.array([row[key] for row in rows]) for key in ("true", "estimate", "floor")
    )
    finite = np.isfinite(estimate)
    above = (estimate >= true) | (true <= floor)
    ratio = np.where(finite, np.maximum(estimate, floor) / true, np.inf)
    return {
        "cases": len(rows),
        "covered": float(np.mean(above)),
        "most exceeded": float(np.max(np.where(above, 0, 1 / np.maximum(ratio, 1e-300)))),
        "median ratio": float(np.median(ratio[finite])) if finite.any() else np.inf,
        "infinite": float(np.mean(~finite)),
        "infinite though small": float(np.mean(~finite & (true < SMALL))),
        "wrong accepted": int(sum(row["wrong accepted"] for row in rows)),
    }


def claims(total: dict[str, float]) -> dict[str, bool]:
    """The claims, and whether they hold."""
    return {
        f"at least {COVERED:.0%} of the true errors covered": total["covered"] >= COVERED,
        f"none exceeds its estimate more than {EXCEEDED:.0f} times": (
            total["most exceeded"] <= EXCEEDED
        ),
        f"the median of estimate over truth is at most {RATIO:.0f}": total["median ratio"] <= RATIO,
        f"infinite where the true error is below {SMALL:.0%} in at most {INFINITE:.0%}": (
            total["infinite though small"] <= INFINITE
        ),
        "strict accepts none that points the wrong way": total["wrong accepted"] == 0,
    }


def main() -> int:
    """Measure, print the table and the claims, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one solver a family, two seeds")
    parser.add_argument("--only", nargs="*", help="names of families")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    began = time.time()
    seeds, solvers = (2, 1) if options.quick else (options.seeds, len(SYMMETRIC))
    rows: dict[str, list[dict[str, Any]]] = {}
    for offset, make in enumerate(FAMILIES):
        if options.only is None or make.__name__ in options.only:
            rows[make.__name__] = list(implicit(make, seeds, solvers, offset))
            print(f"{make.__name__}: {time.time() - began:.0f} s", flush=True)
    if options.only is None or "unrolled" in options.only:
        rows["unrolled"] = list(unrolled(seeds))

    results = {name: summary(part) for name, part in rows.items()}
    total = summary([row for part in rows.values() for row in part])
    columns = list(total)
    print(f"{'':<18}" + "".join(f"{column:>23}" for column in columns))
    for name, result in {**results, "all": total}.items():
        print(f"{name:<18}" + "".join(f"{result[column]:>23.4g}" for column in columns))
    held = claims(total)
    for claim, holds in held.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "all": total,
        "families": results,
        "claims": held,
        "rows": rows,
        "seconds": time.time() - began,
        "jax": jax.__version__,
    }
    (options.out / "error_coverage.json").write_text(json.dumps(report, indent=1))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
