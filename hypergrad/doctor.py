"""Which estimator for which hyperparameter, with reasons."""

import math
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hypergrad.arguments import as_arrays, check_call
from hypergrad.estimator import Estimator
from hypergrad.expected import require_count, require_finite
from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.implicit.curvature import Hessian
from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.linear.dense import Dense
from hypergrad.linear.gmres import GMRES
from hypergrad.linear.jacobian import solver_for
from hypergrad.linear.minres import MINRES
from hypergrad.linear.pcg import PCG
from hypergrad.own_family import own_family, remarks
from hypergrad.paths import Reach, leaf_names, trace_paths
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem
from hypergrad.routed import Routed
from hypergrad.unrolled import Unrolled

# Curvature below this many rounding errors of the largest is zero: the products of a probe add up
# their own, and those of the vector that it has become.
_ROUNDING = 100


@dataclass(frozen=True)
class Route:
    """What to do with one hyperparameter.

    - `name`: its path.
    - `family`: `"implicit"`, `"unrolled"`, `"search"`, or `"unused"`: nothing reads it;
      `"evidence"`, `"sites"`, `"sampling"`, `"instances"` or `"envelope"` for a problem made for
      such an estimator.
    - `reason`: why, in words.
    """

    name: str
    family: str
    reason: str


@dataclass(frozen=True)
class Recommendation:
    """The answer of `recommend`; `str(recommendation)` says it in words.

    - `routes`: one for each leaf of `hparams`.
    - `estimator`: ready to use: `ImplicitDifferentiation`, `Unrolled`, both as `Routed`, or `None`
      when no leaf has a gradient or the training step was not given.
    - `products`: predicted inverse-Hessian products of one implicit hypergradient (0 without).
    - `memory`: predicted bytes of one hypergradient beyond those of an inner gradient.
    - `notes`: what was measured, and what to do about it.
    """

    routes: tuple[Route, ...]
    estimator: Estimator | None
    products: int
    memory: int
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> Route:
        """The route of one hyperparameter."""
        for route in self.routes:
            if route.name == name:
                return route
        known = ", ".join(route.name for route in self.routes)
        raise KeyError(f"{name!r} is not a hyperparameter; there are {known}.")

    def __str__(self) -> str:
        width = max(len(route.name) for route in self.routes)
        lines = [f"{r.name:<{width}}  {r.family:<8}  {r.reason}" for r in self.routes]
        lines += list(self.notes)
        if self.estimator is not None:
            lines.append(
                f"predicted: {self.products} products and {self.memory / 2**20:.3g} MiB for each "
                "hypergradient, beyond an inner gradient"
            )
        return "\n".join(lines)


def recommend(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    inner_batch: PyTree = None,
    outer_batch: PyTree = None,
    *,
    solver: Any = None,
    update: Any = None,
    steps: int | None = None,
    tolerance: float = 1e-6,
    probe: int = 50,
    key: Array | None = None,
) -> Recommendation:
    """Look at a problem and route each hyperparameter to an estimator that can see it.

    Traces both losses for what each hyperparameter does, and runs `probe` products at `params` to
    see the curvature and the stationarity there. Give it trained params, or their size at least:
    an untrained network has another curvature than a trained one.

    **Arguments:**

    - `problem`, `params`, `hparams`, `inner_batch`, `outer_batch`, `key`: as for `hypergradient`.
    - `solver`: the inner solver, handed on to the estimator.
    - `update`, `steps`: the training step and the number of steps, as `Unrolled` takes them; needed
      for hyperparameters that act inside the step (learning rate, momentum).
    - `tolerance`: the relative accuracy wanted of the linear solve.
    - `probe`: products to spend on looking.

    **Raises:** `ValueError` as `hypergradient` does for losses that make no problem.
    """
    check_call(
        "recommend",
        problem,
        key,
        params=params,
        hparams=hparams,
        inner_batch=inner_batch,
        outer_batch=outer_batch,
    )
    params, hparams, inner_batch, outer_batch = as_arrays(
        (params, hparams, inner_batch, outer_batch)
    )
    if (update is None) != (steps is None):
        raise ValueError("recommend: expected `update` and `steps` together, received one of them.")
    if steps is not None:
        require_count("recommend", "steps", steps)
    require_count("recommend", "probe", probe)
    require_finite("recommend", "tolerance", tolerance)
    own = own_family(problem, params, hparams, inner_batch, solver, update, steps)
    if own is not None:
        family, reason, made, note = own
        return Recommendation(
            tuple(
                Route(name, family, reason)
                if eqx.is_inexact_array(leaf)
                else Route(name, "search", "not a floating-point array: it has no gradient")
                for name, leaf in zip(leaf_names(hparams), jax.tree.leaves(hparams), strict=True)
            ),
            made,
            0,
            0,
            (note,),
        )
    paths = trace_paths(problem, params, hparams, inner_batch, outer_batch, key)
    trained = unrolled = None
    if update is not None and steps is not None:
        unrolled = Unrolled(update, steps)
        if paths.hparams:
            trained = unrolled.reaches(problem, params, hparams, inner_batch, outer_batch, key=key)
    routes = [
        _route(name, paths.hparams.get(name), None if trained is None else trained.get(name))
        for name in leaf_names(hparams)
    ]
    families = {route.family for route in routes}
    # Leaves without a gradient, and those of the other family, get `None`.
    mixed = any(route.family != "implicit" for route in routes if route.name in paths.hparams)
    notes = remarks(problem)
    products = memory = 0
    implicit = None
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array)))

    if "implicit" in families:
        linear_solver, damping, products = _linear_solver(
            problem, params, hparams, inner_batch, key, tolerance, probe, notes, solver is None
        )
        vectors = products if isinstance(linear_solver, Dense) else 6
        memory += vectors * size
        implicit = ImplicitDifferentiation(
            solver,
            linear_solver,
            damping=damping,
            unseen="none" if mixed else "raise",
        )
    if "unrolled" not in families:
        unrolled = None
    else:
        if unrolled is not None and steps is not None:
            if families & {"search", "unused"}:
                unrolled = Unrolled(update, steps, unseen="none")
            # Twice the square root of the steps is kept, each with the params and momenta.
            memory += math.ceil(2 * math.sqrt(steps)) * 2 * size
        else:
            notes.append(
                "pass `update` and `steps` (the training step) to get the estimator of the "
                "unrolled hyperparameters"
            )
    estimator: Estimator | None
    if implicit is not None and unrolled is not None:
        estimator = Routed(implicit, unrolled)
    elif "unrolled" in families and unrolled is None:
        estimator = None
    else:
        estimator = implicit if implicit is not None else unrolled
    return Recommendation(tuple(routes), estimator, products, memory, tuple(notes))


def _route(name: str, reach: Reach | None, trained: Reach | None) -> Route:
    """From what it does in the losses, and in a run of the training step if that is known."""
    if reach is None:
        return Route(name, "search", "not a floating-point array: it has no gradient")
    hidden = sorted({*reach.hidden, *(trained.hidden if trained is not None else ())})
    if hidden and (reach.seen or (trained is not None and trained.seen)):
        return Route(
            name,
            "search",
            f"a gradient would be biased: it acts through {', '.join(hidden)} as well, which no "
            "derivative sees; relax it, use self-tuning layers, or search",
        )
    if reach.inner:
        direct = ", and a direct gradient in the outer loss" if reach.outer else ""
        return Route(name, "implicit", f"moves the inner solution through the inner loss{direct}")
    if reach.outer:
        return Route(name, "implicit", "acts on the outer loss only: its direct gradient is exact")
    if reach.used:
        return Route(
            name,
            "search",
            "read by a loss, but with a derivative that is identically zero (a threshold, a "
            "rounding, a sampled mask): relax it, use self-tuning layers, or search",
        )
    if trained is None:
        where = "by neither loss: by the training step if at all (or is its name misspelt?)"
    elif trained.seen:
        where = "by the training step"
    elif trained.used:
        return Route(name, "search", "used by the training step without a derivative")
    else:
        return Route(
            name,
            "unused",
            "nothing reads it, neither the losses nor the step: is its name misspelt?",
        )
    return Route(
        name,
        "unrolled",
        f"used {where}: zero implicit derivative, visible to unrolling only",
    )


def _linear_solver(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    batch: PyTree,
    key: Array | None,
    tolerance: float,
    probe: int,
    notes: list[str],
    given_as_solved: bool,
) -> tuple[LinearSolver, float, int]:
    """The solver, the damping, and the products that one solve is predicted to take."""

    @eqx.filter_jit
    def measured(params: PyTree, hparams: PyTree, batch: PyTree, key: Array | None) -> tuple:
        given = RestrictedProblem(problem, params, hparams, batch, key=key)
        residual, system = Hessian().linearize(given)
        dynamic = given.w
        # A random right-hand side meets every direction of the spectrum.
        keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(dynamic))))
        noise = jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape, a.dtype), dynamic)
        prober = solver_for(CG(tol=tolerance, max_steps=probe), symmetric=system.symmetric)
        solution = system.solve_adjoint(prober, noise)
        state = ImplicitDifferentiation().init(problem, params, hparams, batch, key=key)
        return solution, vector.norm(residual) / state.scale, system.symmetric

    solution, stationarity, symmetric = measured(params, hparams, batch, key)
    size = vector.size(eqx.filter(params, eqx.is_inexact_array))
    residual = float(stationarity)
    if residual > 1e-3 and given_as_solved:
        notes.append(
            f"the inner point is not stationary (relative residual {residual:.1e}): solve the "
            "inner problem further, or pass `solver`"
        )
    low, high = float(solution.curvature_min), float(solution.curvature_max)
    if bool(solution.breakdown) or not math.isfinite(residual):
        notes.append("a Hessian product was not finite at this point: look at the inner loss first")
        return CG(tol=tolerance), 0.0, min(size, probe)
    if not bool(symmetric):
        steps = max(1, int(solution.products))
        notes.append("the optimality map has no symmetric Jacobian: GMRES")
        return GMRES(tol=tolerance), 0.0, steps
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array))}
    rounding = _ROUNDING * max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    if bool(solution.nonpositive_curvature) and abs(low) <= rounding * abs(high):
        notes.append(
            "the Hessian is singular to rounding (semidefinite): MINRES, which needs no inverse; a "
            "direction without curvature has a solution only if the outer loss does not see it"
        )
        return MINRES(tol=tolerance), 0.0, min(size, 2 * probe)
    if bool(solution.nonpositive_curvature):
        if residual > 1e-2:
            damping = 2 * abs(low)
            notes.append(
                "the Hessian is indefinite at a point that is not stationary: damping "
                f"{damping:.1e} (twice the most negative curvature met); Gauss-Newton curvature is "
                "the better choice if the loss is convex in the model's outputs"
            )
            condition = (high + damping) / max(damping - abs(low), 1e-30)
            return CG(tol=tolerance), damping, _predicted(condition, tolerance, size)
        notes.append("the Hessian is indefinite at a stationary point: MINRES")
        return MINRES(tol=tolerance), 0.0, min(size, 2 * probe)
    if float(solution.residual) <= tolerance:
        predicted = int(solution.products)
    else:
        # The Rayleigh quotients seen bound the condition number from below; the rate of the probe
        # itself says the rest.
        rate = float(solution.residual) ** (1 / max(1, int(solution.products)))
        slow = math.log(tolerance) / math.log(min(rate, 0.999))
        predicted = min(size, max(_predicted(high / low, tolerance, size), math.ceil(slow)))
    if size <= min(1000, predicted):
        notes.append(f"{size} inner parameters: a dense factorisation costs as many products")
        return Dense(), 0.0, size
    if predicted > 200:
        notes.append(
            f"curvature from {low:.1e} to {high:.1e}: plain CG would take about {predicted} "
            "products; preconditioned CG, or Tuned, which tries several along a run"
        )
        return PCG(tol=tolerance), 0.0, predicted
    notes.append(f"curvature from {low:.1e} to {high:.1e}: CG in about {predicted} products")
    return CG(tol=tolerance), 0.0, max(1, predicted)


def _predicted(condition: float, tolerance: float, size: int) -> int:
    """Steps of CG by its worst-case bound."""
    return max(1, min(size, math.ceil(0.5 * math.sqrt(condition) * math.log(2 / tolerance))))
