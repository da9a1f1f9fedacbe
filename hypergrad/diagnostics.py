"""Checks that a user can run on a problem of their own."""

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree, Scalar

from hypergrad.arguments import as_arrays, check_call
from hypergrad.estimator import Estimator, HypergradientInfo
from hypergrad.expected import require_count, require_finite, require_flag, require_seed
from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.inner import Newton
from hypergrad.linear import vector
from hypergrad.mistakes import check_estimator
from hypergrad.paths import leaf_names, require_differentiable
from hypergrad.problem import BilevelProblem

# A difference of two losses is uncertain by this many rounding errors of them.
_ROUNDINGS = 10


@dataclass(frozen=True)
class DirectionCheck:
    """One directional derivative, twice.

    - `name`: a hyperparameter leaf, or `random 1`, ... for directions over all of them.
    - `hypergradient`: `⟨grad, d⟩` for the unit direction `d`.
    - `difference`: the central difference.
    - `uncertainty`: how much the central difference itself changes when its step is halved.
    - `error`: `|hypergradient − difference|` over the larger of the two, or over how much the
      difference changes along the step: at an optimum both are zero to rounding.
    - `verdict`: `"ok"` within the tolerance, or within a small uncertainty of the difference;
      `"unclear"` where the uncertainty is too large to tell; else `"WRONG"`.
    """

    name: str
    hypergradient: float
    difference: float
    uncertainty: float
    error: float
    verdict: Literal["ok", "unclear", "WRONG"]

    @property
    def ok(self) -> bool:
        """The two agree."""
        return self.verdict == "ok"


@dataclass(frozen=True)
class HypergradientCheck:
    """The report of `check_hypergradient`; `str(report)` is a table."""

    directions: tuple[DirectionCheck, ...]
    tolerance: float
    step: float
    reference_residual: float
    info: HypergradientInfo

    @property
    def ok(self) -> bool:
        """Every direction agrees."""
        return all(direction.ok for direction in self.directions)

    @property
    def unclear(self) -> bool:
        """No direction disagrees, but some cannot be told."""
        return not self.ok and all(d.verdict != "WRONG" for d in self.directions)

    @property
    def error(self) -> float:
        """The largest relative error of the directions."""
        return max(direction.error for direction in self.directions)

    def __str__(self) -> str:
        width = max(len("direction"), *(len(d.name) for d in self.directions))
        header = f"{'direction':<{width}}  {'hypergradient':>14}  {'difference':>14}  "
        lines = [header + f"{'uncertainty':>11}  {'error':>8}"]
        for d in self.directions:
            lines.append(
                f"{d.name:<{width}}  {d.hypergradient:>14.6e}  {d.difference:>14.6e}  "
                f"{d.uncertainty:>11.1e}  {d.error:>8.1e}  {d.verdict}"
            )
        info = self.info
        lines.append(
            f"relative error allowed {self.tolerance:.1e}, step {self.step:.1e}; shifted inner "
            f"problems solved to a residual of {self.reference_residual:.1e}"
        )
        lines.append(f"the hypergradient's own account: {info}")
        if self.ok:
            lines.append("OK: the hypergradient agrees with finite differences.")
            return "\n".join(lines)
        if self.unclear:
            lines.append("CANNOT TELL: the differences are too uncertain to compare with.")
        else:
            lines.append("NOT OK.")
        if any(d.uncertainty > 0.1 * abs(d.difference) for d in self.directions if not d.ok):
            lines.append(
                "The differences depend on their own step, or drown in rounding: the inner "
                "solution may jump (several minima) or have a kink (an active set that changes), "
                "or the shifted problems are not solved well enough."
            )
        if bool(info.nonpositive_curvature):
            lines.append("The inner Hessian is not positive definite at the inner point.")
        if not float(info.inner_residual) < 1e-4:
            lines.append("The inner problem is not solved: the point is not stationary.")
        if not float(info.linear_residual) < 1e-3:
            lines.append("The linear system is not solved: raise max_steps or lower tol.")
        return "\n".join(lines)


def check_hypergradient(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    inner_batch: PyTree = None,
    outer_batch: PyTree = None,
    *,
    estimator: Estimator | None = None,
    solve: bool = True,
    directions: int = 3,
    step: float | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    key: Array | None = None,
) -> HypergradientCheck:
    """Compare a hypergradient with central finite differences on the user's own problem.

    Along random unit directions over all hyperparameters, and along one random direction within
    each leaf, the outer loss is evaluated at four shifted hyperparameters (two steps, one half of
    the other), each with the inner problem solved anew by Newton's method to rounding error.
    Float64 (`jax_enable_x64`) makes the comparison sharp; in float32 it is rough.

    **Arguments:**

    - `problem`, `params`, `hparams`, `inner_batch`, `outer_batch`, `key`: as for `hypergradient`.
    - `estimator`: the one to check, by default `ImplicitDifferentiation()`.
    - `solve`: `True` compares with the derivative at the exact inner solution. `False` compares
      with differences of the loss that the estimator itself reaches by `init` and `fit` from
      `params`: the truth for unrolled differentiation.
    - `directions`: number of directions over all hyperparameters.
    - `step`: of the differences, by default `1e-4` in float64 and `1e-2` in float32, times
      `max(1, largest |hparams|)`.
    - `tolerance`: relative; by default `1e-4` in float64 and `5e-2` in float32.
    - `seed`: of the directions.

    **Returns:** a `HypergradientCheck`: `.ok`, `.unclear`, `.error`, `.directions`, and a table
    when printed.

    **Raises:** `ValueError` as `hypergradient` does.
    """
    if estimator is None:
        estimator = ImplicitDifferentiation()
    check_estimator(estimator)
    require_flag("check_hypergradient", "solve", solve)
    check_call(
        "check_hypergradient",
        problem,
        key,
        params=params,
        hparams=hparams,
        inner_batch=inner_batch,
        outer_batch=outer_batch,
    )
    require_count("check_hypergradient", "directions", directions)
    require_seed("check_hypergradient", seed)
    for name, number in (("step", step), ("tolerance", tolerance)):
        if number is not None:
            require_finite("check_hypergradient", name, number)
    arguments = as_arrays((params, hparams, inner_batch, outer_batch))
    params, hparams, inner_batch, outer_batch = arguments
    h, h_static = eqx.partition(hparams, eqx.is_inexact_array)
    require_differentiable(jax.tree.leaves(h))
    flat, unravel = ravel_pytree(h)
    double = flat.dtype == jnp.float64
    tolerance = (1e-4 if double else 5e-2) if tolerance is None else tolerance
    if step is None:
        step = (1e-4 if double else 1e-2) * max(1.0, float(jnp.max(jnp.abs(flat))))

    @eqx.filter_jit
    def analytic(estimator: Estimator, arguments: tuple, key: Array | None) -> tuple:
        params, hparams, inner_batch, outer_batch = arguments
        state = estimator.init(problem, params, hparams, inner_batch, key=key)
        state, _ = estimator.fit(problem, state, hparams, inner_batch, key=key)
        out = estimator.hypergradient(problem, state, hparams, inner_batch, outer_batch, key=key)
        point = out.state.params
        if solve:
            point = Newton().run(problem, point, hparams, inner_batch, key=key).params
        return out, point

    out, point = analytic(estimator, arguments, key)

    def shifted(h: PyTree, arguments: tuple, point: PyTree, key: Array | None) -> tuple:
        params, _, inner_batch, outer_batch = arguments
        hparams = eqx.combine(h, h_static)
        if solve:
            # From the solution at the unshifted hyperparameters: the same branch on all sides.
            solution = Newton().run(problem, point, hparams, inner_batch, key=key)
            loss = problem.outer_loss(solution.params, hparams, outer_batch, key)[0]
            return loss, solution.residual
        state = estimator.init(problem, params, hparams, inner_batch, key=key)
        state, _ = estimator.fit(problem, state, hparams, inner_batch, key=key)
        out = estimator.hypergradient(problem, state, hparams, inner_batch, outer_batch, key=key)
        return out.value, out.info.inner_residual

    @eqx.filter_jit
    def differences(
        moves: Array, flat: Array, arguments: tuple, point: PyTree, key: Array | None
    ) -> tuple[Array, Array, Scalar]:
        def along(move: Array) -> tuple[Array, Array, Array]:
            def value(size: Array) -> tuple[Scalar, Scalar]:
                return shifted(unravel(flat + size * move), arguments, point, key)

            sizes = jnp.asarray([1, -1, 0.5, -0.5], flat.dtype) * step
            values, residuals = jax.lax.map(value, sizes)
            slopes = (values[0::2] - values[1::2]) / (sizes[0::2] - sizes[1::2])
            bend = jnp.abs(values[0] + values[1] - values[2] - values[3]) / step
            rounding = jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values)) / step
            return slopes, jnp.stack([bend, _ROUNDINGS * rounding]), residuals

        slopes, scales, residuals = jax.lax.map(along, moves)
        return slopes, scales, jnp.max(residuals)

    names, moves = _directions(h, directions, np.random.default_rng(seed))
    slopes, scales, residual = differences(
        jnp.asarray(moves, flat.dtype), flat, arguments, point, key
    )
    gradient = np.asarray(ravel_pytree(out.grad)[0], np.float64)
    size = float(np.linalg.norm(gradient))
    rows = []
    measured = zip(names, moves, np.asarray(slopes, float), np.asarray(scales, float), strict=True)
    for name, move, (coarse, fine), (bend, rounding) in measured:
        analytic_slope = float(gradient @ move)
        uncertainty = float(abs(fine - coarse) + rounding)
        gap = abs(analytic_slope - fine)
        # A direction across the gradient has next to no derivative, and only noise to compare; an
        # optimum has none at all, and is told by how much the slope changes along the step.
        larger = max(abs(analytic_slope), abs(fine), 1e-3 * size, bend)
        error = gap / larger if larger > 0 else gap
        near = gap <= 2 * uncertainty
        verdict: Literal["ok", "unclear", "WRONG"] = "WRONG"
        if np.isfinite(gap) and (error <= tolerance or (near and uncertainty <= 0.1 * larger)):
            verdict = "ok"
        elif near or not np.isfinite(fine):
            verdict = "unclear"
        rows.append(
            DirectionCheck(name, analytic_slope, float(fine), uncertainty, float(error), verdict)
        )
    return HypergradientCheck(tuple(rows), tolerance, step, float(residual), out.info)


def _directions(h: PyTree, count: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Unit directions: `count` over everything, then one for each leaf if there are several."""
    leaves = jax.tree.leaves(h)
    total = vector.size(h)
    names = [f"random {i + 1}" for i in range(count)]
    rows = [rng.normal(size=total) for _ in range(count)]
    start = 0
    for name, leaf in zip(leaf_names(h), leaves, strict=True):
        if len(leaves) > 1 and leaf.size > 0:
            row = np.zeros(total)
            row[start : start + leaf.size] = rng.normal(size=leaf.size)
            names.append(name)
            rows.append(row)
        start += leaf.size
    return names, np.array([row / np.linalg.norm(row) for row in rows])
