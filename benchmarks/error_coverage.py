"""How well the error estimate of hypergradients covers the true error.

    python -m benchmarks.error_coverage [--quick] [--only FAMILY ...] [--seeds N] [--out DIR]

The families of `benchmarks.error_families`, chosen to be unkind, with every linear solver from one
digit to ten and cut short, at and near the inner solution; and the unrolled modes in float32. The
truth is a closed form, or comes from Newton's method and every matrix formed, in float64. Prints a
table and the claims, leaves a record, and exits with status 1 if a claim fails. `--quick` takes
six families of different kinds and two seeds.

An infinite estimate covers, but is left out of the median. True errors below what the truth itself
is good for count as that.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from benchmarks.error_families import (
    FAMILIES,
    LOGISTIC,
    LOGISTIC_MAP,
    MAP_STEP,
    NETWORK,
    RIDGE,
    Case,
    logistic,
    logistic_map,
    network,
    ridge,
)
from benchmarks.error_shared import answering, asking, judged, solved, truth_of
from experiments.harness.experiment import Claim
from experiments.harness.record import plain
from hypergrad import CG, ProximalStep
from hypergrad.linear import (
    GMRES,
    MINRES,
    PCG,
    BiCGStab,
    Dense,
    Fallback,
    Identity,
    LinearSolver,
    Neumann,
    NormalCG,
    Nystrom,
    RecyclingCG,
)
from hypergrad.linear.base import IterativeSolver
from hypergrad.unrolled import ForwardUnrolled, OnlineUnrolled, TruncatedUnrolled, Unrolled

# Tolerances and most steps of the iterative solvers.
BUDGETS = ((1e-1, 1000), (1e-3, 1000), (1e-6, 1000), (1e-10, 1000), (0.0, 15))
GENERAL = (GMRES(), BiCGStab(), NormalCG(), Dense(), Neumann(), Identity())
SYMMETRIC = (CG(), PCG(), RecyclingCG(), MINRES(), Fallback(), Nystrom(), *GENERAL)
QUICK = ("poisson", "deficient", "half", "spectrum_products", "units_products", "unrolled")

CLAIMS = (
    Claim("covered", "share of the true errors that the estimate covers", at_least=0.99),
    Claim("exceeded", "how often a true error exceeds its estimate, at most", at_most=3.0),
    Claim("ratio", "median of the estimate over the true error", at_most=10.0),
    Claim(
        "infinite",
        "share of cases with an infinite estimate, though the true error is below 2 %",
        at_most=0.02,
    ),
    Claim("wrong", "gradients that point the wrong way and that strict accepts", at_most=0),
)
SMALL = 0.02


def cast(tree: Any, dtype: Any) -> Any:
    """Every floating-point array in `dtype`."""
    return jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, tree)


def budgeted(solver: LinearSolver) -> Iterator[tuple[LinearSolver, dict[str, Any]]]:
    """A solver with every budget, and what its rows say of it."""
    name = type(solver).__name__
    if not isinstance(solver, IterativeSolver):
        yield solver, {"solver": name, "tol": None, "steps": None}
        return
    for tol, steps in BUDGETS:
        chosen = (jnp.asarray(tol), jnp.asarray(steps))
        solver = eqx.tree_at(lambda s: (s.tol, s.max_steps), solver, chosen)
        yield solver, {"solver": name, "tol": tol, "steps": steps}


def row_of(gradient: Any, error: Any, refused: Any, truth: Any, floor: float) -> dict[str, Any]:
    """One case: true and estimated error, and whether a wrong direction was accepted."""
    gradient, truth = (np.asarray(a, float).ravel() for a in (gradient, truth))
    size = float(np.linalg.norm(gradient))
    true = float(np.linalg.norm(gradient - truth))
    true = max(true / size if size > 0 else np.inf if true > 0 else 0.0, floor)
    wrong = bool(gradient @ truth <= 0 < np.linalg.norm(truth)) and not bool(refused)
    return {"true": true, "estimate": float(error), "floor": floor, "wrong accepted": wrong}


def implicit(make: Callable, seeds: int) -> Iterator[dict[str, Any]]:
    """The rows of a family: every seed, distance from the solution, linear solver and budget."""
    case: Case = make(np.random.default_rng(0))
    symmetric = isinstance(case.problem.optimality, ProximalStep | None)
    truth = truth_of(cast(case.problem, jnp.float64), case.solved)
    ask, answer = asking(case.problem), answering(case.problem, case.estimate)
    for seed in range(min(seeds, case.seeds)):
        case = make(np.random.default_rng(seed))
        data = cast((case.hparams, case.train, case.valid), case.dtype)
        star, drift, exact, condition = truth(case.start, *cast(data, jnp.float64), case.key)
        exact = exact if case.truth is None else case.truth
        floor = 1e-14 * float(condition)
        for level in case.levels:
            point = jax.tree.map(lambda a, d, level=level: a + level * d, star, drift)
            point = cast(point, case.dtype)
            system = ask(point, *data, case.key)
            tried = [
                t for solver in (SYMMETRIC if symmetric else GENERAL) for t in budgeted(solver)
            ]
            solutions = [solved(solver, *system, symmetric=symmetric) for solver, _ in tried]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *solutions)
            judgements = jax.tree.map(np.asarray, answer(stacked, point, *data, case.key))
            for (_, words), *judgement in zip(tried, *judgements, strict=True):
                yield {
                    "seed": seed,
                    "level": level,
                    **words,
                    **row_of(*judgement, truth=exact, floor=floor),
                }


def trained(trainings: Sequence[tuple], seeds: int) -> Iterator[dict[str, Any]]:
    """Every unrolled mode in float32 against the derivative of the same run in float64."""
    for problem, make, update, steps, window in trainings:
        modes = (
            Unrolled(update, steps),
            ForwardUnrolled(update, steps),
            TruncatedUnrolled(update, steps, window),
            OnlineUnrolled(update, steps),
        )
        judge = eqx.filter_jit(lambda mode, *rest, problem=problem: judged(mode, problem, *rest))
        for seed in range(seeds):
            case = make(np.random.default_rng(seed))
            narrow = cast((case.start, case.hparams, case.train, case.valid), jnp.float32)
            exact, _, _ = judge(modes[0], *cast(narrow, jnp.float64), None)
            for mode in modes:
                out = judge(mode, *narrow, None)
                words = {"seed": seed, "level": None, "solver": type(mode).__name__}
                yield {
                    **words,
                    "tol": None,
                    "steps": None,
                    **row_of(*out, truth=exact, floor=1e-12),
                }


STABLE = (
    (RIDGE, ridge, optax.sgd(0.3), 50, 20),
    (LOGISTIC, logistic, optax.sgd(0.3, momentum=0.9), 50, 20),
    (NETWORK, network, optax.adam(0.03), 50, 20),
)
# Chaotic runs that leave a few digits and none, and a training whose rate is near to where it
# diverges. Truncation drops nothing: of what grows backwards no bias is small.
UNSTABLE = (
    (LOGISTIC_MAP, logistic_map, MAP_STEP, 20, 20),
    (LOGISTIC_MAP, logistic_map, MAP_STEP, 40, 40),
    (NETWORK, network, optax.sgd(0.6), 50, 50),
)


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
        "exceeded": float(np.max(np.where(above, 0, 1 / np.maximum(ratio, 1e-300)))),
        "ratio": float(np.median(ratio[finite])) if finite.any() else math.nan,
        "infinite": float(np.mean(~finite)),
        "infinite though small": float(np.mean(~finite & (true < SMALL))),
        "wrong": int(sum(row["wrong accepted"] for row in rows)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and the claims, leave the record. Returns 1 if a claim fails."""
    parser = measure.options("the error estimate of hypergradients against true errors")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of families")
    parsed = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    seeds = min(parsed.seeds, 2) if parsed.quick else parsed.seeds
    chosen = parsed.only or (QUICK if parsed.quick else None)
    makers = {make.__name__: partial(implicit, make) for make in FAMILIES}
    makers |= {"unrolled": partial(trained, STABLE), "unstable": partial(trained, UNSTABLE)}
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, make in makers.items():
        if chosen is None or name in chosen:
            began = time.perf_counter()
            rows[name] = list(make(seeds))
            print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)

    total = summary([row for part in rows.values() for row in part])
    by_solver: dict[str, list[dict[str, Any]]] = {}
    for row in (row for part in rows.values() for row in part):
        by_solver.setdefault(row["solver"], []).append(row)
    tables = {
        "families": [{"family": name, **summary(part)} for name, part in rows.items()],
        "solvers": [{"solver": name, **summary(part)} for name, part in by_solver.items()],
    }
    total = {**total, "infinite": total["infinite though small"]}
    checked = [claim.check(total[claim.key], quick=parsed.quick) for claim in CLAIMS]
    measure.report("error_coverage", tables, {}, parsed, claims=checked)
    if parsed.out is not None:
        (parsed.out / "rows.json").write_text(json.dumps(plain(rows)))
    return 0 if all(claim["holds"] for claim in checked) else 1


if __name__ == "__main__":
    sys.exit(main())
