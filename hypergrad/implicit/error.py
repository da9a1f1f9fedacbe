"""A-posteriori estimate of the error of an implicit hypergradient.

With the Lagrangian `L(w, λ, q) = g(w, λ) − ⟨r(w, λ), q⟩`, `r = ∂f/∂w`, all pieces are gradients of
a scalar:

    ∂L/∂λ = the hypergradient at (w, q)       ∂L/∂w = ∂g/∂w − Jᵀ q, the linear residual ρ
    ∂L/∂q = −r, the inner residual

and at the exact `(w*, q*)` the last two vanish. So two Newton steps are taken for the pair,
`w ← w − J⁻¹ r` and `q ← q + J⁻ᵀ ρ`, and the distance between `∂L/∂λ` there and the hypergradient
that is returned estimates its error. It is inflated by `1 / (1 − θ)`, where `θ` is the ratio of the
lengths of the two steps in `w`: the contraction that was really achieved. (The ratio of steps, not
of residuals: it does not change with the conditioning; Deuflhard, *Newton Methods for Nonlinear
Problems*, section 2.1.) In the words of inexact bilevel methods this is the computable counterpart
of the bounds of Pedregosa (2016, theorem 2) and Salehi et al. (2024), which need Lipschitz
constants.

What the solves do not reach is bounded from the other side. For a random direction `s` of
hyperparameters let `v = C s`, `C = ∂r/∂λ`, and `J z = v`. Then `⟨z, ρ⟩` is what a remaining `ρ`
still contributes along `s`: a weak direction shows in `z` if the hyperparameters act on it at all.
What neither solve reached, `ρ` and `v − J z`, contributes at most the product of their lengths
and of the largest factor by which `J⁻¹` lengthens. That factor is bounded from below by what the
solves lengthened, and by `‖ρ‖ / ‖J ρ‖`: what is left after two solves lies in the weakest
directions, and `‖ρ‖² = ⟨J⁻ᵀρ, Jρ⟩`.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.implicit.inverse import Inverse
from hypergrad.linear import vector
from hypergrad.linear.random import random_signs

# A part of the cotangent above this that no solve reaches: the adjoint system has no solution.
_UNREACHED = 0.5
# A second solve that leaves more than this of what the first one left does not get anywhere.
_STUCK = 0.5
# Newton steps that do not contract are taken for rounding where they are no longer than the root
# of the rounding unit, or change the hypergradient by less than `_SMALL`. They then count with
# at most these contractions.
_SMALL = 1e-2
_CLOSE_CONTRACTION, _SMALL_CONTRACTION = 0.5, 0.9
# Of each of the three steps beside its solves: the gradients of both losses and of `⟨r, q⟩` that
# make up those of the Lagrangian, and one product. As much is one derivative of them.
_CALLS = 4


class Sensitivity(eqx.Module):
    """`∂L/∂λ`, `∂L/∂w` and the inner residual, all at one point."""

    gradient: PyTree
    linear: PyTree
    inner: PyTree


class Estimated(eqx.Module):
    """An estimate, and what it cost.

    - `error`: `‖gradient − truth‖ / ‖gradient‖`, infinite where nothing is known.
    - `calls`: gradient-like evaluations: each product, and each gradient of the Lagrangian.
    """

    error: Scalar
    calls: Int[Array, ""]


class Measured(eqx.Module):
    """What the estimate is to judge, everything divided by the size of the cotangent.

    - `point`, `adjoint`: `w` and `q`.
    - `gradient`: the hypergradient that is returned.
    - `magnitude`: the sum of the norms of its two parts.
    - `cotangent`: `‖∂g/∂w‖`.
    - `noise`: the rounding error in the norm of the inner residual.
    - `unit`: the rounding unit of the losses.
    - `minimum`: the inner point is to be a minimum, so that curvature means something.
    """

    point: PyTree
    adjoint: PyTree
    gradient: PyTree
    magnitude: Scalar
    cotangent: Scalar
    noise: Scalar
    unit: Scalar | float
    minimum: bool = eqx.field(static=True)


def estimate_error(
    safety: float | Scalar,
    at: Callable[[PyTree, PyTree], Sensitivity],
    probe: PyTree,
    bent: Callable[[PyTree, PyTree, PyTree], PyTree],
    inverse: Inverse,
    measured: Measured,
) -> Estimated:
    """Estimate `‖gradient − truth‖ / ‖gradient‖`.

    **Arguments:**

    - `safety`: see `ErrorEstimate`.
    - `at`: `(w, q) -> Sensitivity`.
    - `probe`: `C s` for a random direction `s` of independent signs.
    - `bent`: `(w, q, z) -> ∂²L/∂w∂λ s − ∂²L/∂w² z`.
    - `inverse`: of the linearisation `J`.
    - `measured`: what is judged.

    **Returns:** the estimate and its cost. It is infinite where the Newton steps do not contract,
    the cotangent is not in the range of `Jᵀ`, the solves cannot reach a part of it, or the point is
    not near a minimum.
    """
    count = max(vector.size(measured.point), 1)
    # Rounding hides a residual of this length; along a random direction it joins the second step.
    signs = random_signs(probe)
    hidden = vector.scale(measured.noise / count**0.5, signs)

    def step(carry: tuple, stage: Array) -> tuple[tuple, dict[str, Array]]:
        point, adjoint, _ = carry
        pieces = at(point, adjoint)
        blurred = vector.axpy(jnp.where(stage == 1, 1, 0), hidden, pieces.inner)
        last = stage == 2
        # What a product makes of what is left, and beside it of a vector of no special direction.
        tried = vector.where(last, pieces.linear, signs)
        forward = inverse.solve(vector.where(last, probe, blurred))

        def turned() -> PyTree:
            # Nothing is left by an inverse that reaches everything.
            zero = vector.zeros_like(pieces.linear)
            return bent(point, adjoint, forward.value) if inverse.partial else zero

        adjoint_step = inverse.solve_adjoint(jax.lax.cond(last, turned, lambda: pieces.linear))
        seen = {
            "inner": vector.norm(pieces.inner),
            "linear": vector.norm(pieces.linear),
            "length": vector.norm(forward.value),
            "left": forward.left,
            "indefinite": forward.indefinite,
            "adjoint": vector.norm(adjoint_step.value),
            "adjoint left": adjoint_step.left,
            "paired": jnp.abs(vector.vdot(forward.value, pieces.linear)),
            "paired inner": jnp.abs(vector.vdot(adjoint_step.value, pieces.inner)),
            "stretch": _ratio(vector.norm(inverse.multiply(tried)), vector.norm(tried)),
            "products": forward.products + adjoint_step.products,
        }
        moved = vector.axpy(jnp.where(last, 0, -1), forward.value, point)
        return (moved, vector.axpy(1, adjoint_step.value, adjoint), pieces.gradient), seen

    # All steps and the probe in one loop: the program holds each solve once.
    start = (measured.point, measured.adjoint, vector.widen(measured.gradient))
    (_, _, gradient), seen = jax.lax.scan(step, start, jnp.arange(3))

    norm = vector.norm(measured.gradient)
    nonzero = jnp.where(norm > 0, norm, 1)
    distance = vector.norm(vector.sub(gradient, vector.widen(measured.gradient)))
    contraction = _contraction(seen, measured, distance / nonzero)
    inflation = jnp.where(contraction < 1, safety / (1 - contraction), jnp.inf)

    # What the two adjoint steps did not reach, along the probe and beyond it.
    width = vector.norm(probe)
    missed, reach = seen["linear"][2], seen["length"][2]
    weakest, usual = seen["stretch"][2], seen["stretch"][1]
    # Shorter than rounding: the rest lies in the kernel, where nothing can reach it, nor has to.
    alive = weakest > 4 * count**0.5 * measured.unit * usual
    factors = jnp.stack(
        [
            _ratio(reach, width),
            _ratio(seen["adjoint"][0], seen["linear"][0]),
            _ratio(seen["adjoint"][1], seen["linear"][1]),
            jnp.where(alive, 1 / jnp.where(alive, weakest, 1), 0),
        ]
    )
    gain = inverse.gain(jnp.max(factors))
    # A rest without a direction meets the probe by chance only.
    crossing = seen["paired"][2] + missed * reach / count**0.5
    # And of the inner residual, what neither step in `w` reached, along the same direction.
    chance = seen["inner"][2] * seen["adjoint"][2] / count**0.5
    crossing = crossing + seen["paired inner"][2] + chance
    unseen = missed * gain * seen["left"][2] * width
    unreached = _ratio(missed, measured.cotangent)

    absolute = jnp.where(distance > 0, inflation * distance, 0)
    absolute = absolute + safety * (crossing + unseen) + 4 * measured.unit * measured.magnitude
    error = jnp.where(absolute > 0, absolute / norm, 0) + unreached
    # Neither small, nor in the kernel, nor does more work reach it: its share is anyone's guess.
    stuck = alive & (seen["adjoint left"][1] > _STUCK) & (unreached > _SMALL)
    known = (unreached <= _UNREACHED) & ~stuck & ~jnp.isnan(error)
    calls = inverse.products + jnp.sum(seen["products"]) + (3 + inverse.partial) * _CALLS
    return Estimated(jnp.where(known, error, jnp.inf), calls.astype(jnp.int32))


def _contraction(seen: dict[str, Array], measured: Measured, change: Scalar) -> Scalar:
    """The contraction of the Newton steps in `w`, infinite where they lead nowhere."""
    first, second = seen["length"][0], seen["length"][1]
    ratio = jnp.where(first > 0, second / jnp.where(first > 0, first, 1), 0)
    # Once the inner residual is rounding error no step can reduce it, and none has to.
    rounded = seen["inner"][1] <= 30 * measured.noise
    # A part of the residual out of the Jacobian's range: there is no solution nearby.
    ratio = jnp.where(rounded, 0, jnp.maximum(ratio, seen["left"][0]))
    precision = jnp.sqrt(jnp.asarray(measured.unit, first.dtype))
    close = first <= precision * vector.norm(measured.point)
    small = change <= _SMALL
    ratio = jnp.where(small, jnp.minimum(ratio, _SMALL_CONTRACTION), ratio)
    ratio = jnp.where(close, jnp.minimum(ratio, _CLOSE_CONTRACTION), ratio)
    # Newton's method is drawn to saddle points as well.
    astray = measured.minimum & seen["indefinite"][0] & ~(rounded | close | small)
    return jnp.where(astray, jnp.inf, ratio)


def _ratio(part: Scalar, whole: Scalar) -> Scalar:
    return jnp.where(part > 0, part / whole, 0)
