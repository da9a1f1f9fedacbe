"""The loop that `CG`, `PCG` and `RecyclingCG` share: preconditioned conjugate gradient.

Hestenes & Stiefel, "Methods of conjugate gradients for solving linear systems" (1952); Concus,
Golub & O'Leary (1976) for the preconditioned form. Written out rather than taken from a library
because an inverse-Hessian product needs what they do not give: a stop at non-positive curvature,
containment of non-finite products, a sound iterate whatever happens, and no product with a vector
of zeros. The stop, and what is returned, are in the plain norm of the residual, with a
preconditioner too, so that the methods can be compared.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.base import IterativeSolver
from hypergrad.linear.solution import LinearSolution, Spectrum, nothing_met
from hypergrad.linear.system import System
from hypergrad.linear.vector import Product
from hypergrad.outcome import RUNNING, Outcome

# What is remembered, the direction, its image, and whether the step was taken.
Observer = Callable[[PyTree, PyTree, PyTree, Bool[Array, ""]], PyTree]


class Iteration(eqx.Module):
    """Where the loop stands.

    **Fields:**

    - `products`: spent so far.
    - `x`, `residual`: the iterate, and `b − A x`.
    - `square`: `‖b − A x‖²`.
    - `direction`: the last one; the first one if `warm`.
    - `along`: `⟨direction, residual⟩`, infinite where the next step begins afresh.
    - `warm`: the first step goes along a warm start.
    - `sound`: the preconditioner is in use.
    - `memory`: of the observer.
    """

    products: Int[Array, ""]
    x: PyTree
    residual: PyTree
    square: Scalar
    direction: PyTree
    along: Scalar
    warm: Bool[Array, ""]
    sound: Bool[Array, ""]
    spectrum: Spectrum
    outcome: Outcome
    memory: PyTree = None


def begin(system: System, products: Int[Array, ""] | int = 0) -> Iteration:
    """At zero, where the residual is `b` and needs no product.

    A warm start is the first *direction*: the exact step along it is its best scaling in the energy
    norm, and the loop body stays the only place with a product.
    """
    dtype = system.norm.dtype
    direction, along, warm = system.rhs, jnp.asarray(jnp.inf, dtype), system.warm
    if system.start is not None:
        direction = vector.where(warm, system.start, system.rhs)
        along = jnp.where(warm, vector.vdot(direction, system.rhs), along)
    return Iteration(
        products=jnp.asarray(products, jnp.int32),
        x=vector.zeros_like(system.rhs),
        residual=system.rhs,
        square=system.norm**2,
        direction=direction,
        along=along,
        warm=warm,
        sound=jnp.asarray(True),
        spectrum=nothing_met(dtype),
        outcome=RUNNING,
    )


def conjugate_gradient(
    solver: IterativeSolver,
    system: System,
    start: Iteration,
    inverse: Product | None = None,
    *,
    dispensable: bool = False,
    observe: Observer | None = None,
) -> LinearSolution:
    """Iterate from `start` until the solver's tolerance is reached; one product a step.

    **Arguments:**

    - `inverse`: the preconditioner `v -> P⁻¹ v`; none by default.
    - `dispensable`: one that is not positive definite is done without from there on. By default it
      is a breakdown.
    - `observe`: sees every direction and its image; what it returns is the solution's `state`.
    """
    eps = jnp.finfo(system.norm.dtype).eps

    def unfinished(c: Iteration) -> Array:
        return solver.unfinished(system, c.products, jnp.sqrt(c.square), c.outcome)

    def body(c: Iteration) -> Iteration:
        z, rz, sound = c.residual, c.square, c.sound
        if inverse is not None:
            z = inverse(c.residual)
            rz = vector.vdot(c.residual, z)
            sound = sound & jnp.isfinite(rz) & (rz > 0)
            z = vector.where(sound, z, c.residual)
            rz = jnp.where(sound, rz, c.square)
        # Made here and not at the end: the last use of the old direction makes the new one, so that
        # the compiler needs no copy of it.
        factor = jnp.where(c.warm, 1, jnp.where(sound == c.sound, rz / c.along, 0))
        direction = vector.axpy(factor, c.direction, vector.scale(jnp.where(c.warm, 0, 1), z))
        along = jnp.where(c.warm, c.along, rz)
        image = system.operator.mv(direction)
        curvature = vector.vdot(direction, image)
        quotient = curvature / vector.vdot(direction, direction)
        # An entry of the image that is not finite makes the product with it not finite.
        finite = jnp.isfinite(curvature)
        spectrum = c.spectrum.met(quotient)
        positive = quotient > eps * jnp.maximum(spectrum.high, 0)
        step = jnp.where(finite & positive, along / curvature, 0)
        residual = vector.axpy(-step, image, c.residual)
        square = vector.vdot(residual, residual)
        # What a failed step makes of the residual is not used, for the iteration ends with it. Only
        # one of no positive curvature along a warm start is passed over, and not made.
        finite = finite & jnp.isfinite(square)
        usable = sound | dispensable
        good = finite & positive & usable
        outcome = Outcome.where(positive | c.warm, RUNNING, Outcome.nonpositive_curvature)
        outcome = Outcome.where(usable, outcome, Outcome.breakdown)
        return Iteration(
            products=c.products + 1,
            x=vector.where(good, vector.axpy(step, direction, c.x), c.x),
            residual=residual,
            square=jnp.where(good, square, c.square),
            direction=direction,
            along=jnp.where(c.warm, jnp.inf, along),
            warm=jnp.asarray(False),
            sound=sound,
            spectrum=spectrum,
            outcome=Outcome.where(finite, outcome, Outcome.not_finite),
            memory=None if observe is None else observe(c.memory, direction, image, good),
        )

    end = jax.lax.while_loop(unfinished, body, start)
    return system.solution(
        end.x,
        jnp.sqrt(end.square),
        end.products,
        end.outcome,
        end.spectrum,
        tol=solver.tol,
        state=end.memory,
    )
