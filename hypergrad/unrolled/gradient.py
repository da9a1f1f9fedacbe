"""The gradient of a training loss, to be differentiated once more.

A training step takes a gradient, and reverse mode through the step differentiates it. Done by
transposing the gradient's own backward pass (reverse over reverse), that stores everything which
the gradient computes. But the second derivative is symmetric: for a loss `f(w, h)` and a cotangent
`u` of its gradient in `w`,

    (∂²f/∂w²) u, (∂²f/∂h∂w) u  =  d/dε ∇f(w + ε u, h)  at ε = 0,   ∇ in w and h,

one `jvp` of a gradient (forward over reverse), which needs `w` and `h` only (Kemaev et al. 2025,
*Scalable Meta-Learning via Mixed-Mode Differentiation*).
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jaxtyping import Array, PyTree

from hypergrad.paths import inputs_of
from hypergrad.restricted import reverse_only
from hypergrad.unrolled.linear_map import linear_map


class ReverseOnlyLossWarning(UserWarning):
    """The inner loss has a `jax.custom_vjp`: unrolling takes the memory of reverse over reverse."""


def grad(loss: Callable) -> Callable:
    """`jax.grad(loss)` whose own derivative takes no more memory than a gradient.

    For steps of one's own (`StepFunction`, `InnerStep`); `OptaxStep` has it built in. All modes of
    differentiation and `vmap` work.

    **Arguments:**

    - `loss`: `loss(params, *others) -> scalar`. A loss with a `jax.custom_vjp` inside has no
      derivative in forward mode: its gradient is `jax.grad`'s, with a `ReverseOnlyLossWarning`.

    **Returns:** a function of the same arguments: the gradient with respect to `params`, with
    `None` for leaves that are not floating-point arrays.
    """

    def gradient(params: PyTree, *others: Any) -> PyTree:
        w, static = eqx.partition(params, eqx.is_inexact_array)
        arrays, rest = eqx.partition(others, eqx.is_array)

        def value(w: PyTree, arrays: PyTree) -> Array:
            return loss(eqx.combine(w, static), *eqx.combine(arrays, rest))

        program = jax.make_jaxpr(value)(w, arrays)
        if reverse_only(program.jaxpr):
            warnings.warn(
                "The inner loss has a derivative rule for reverse mode only (jax.custom_vjp). Its "
                "gradient is differentiated in reverse mode once more, which stores everything "
                "that the gradient computes. A rule for both modes (jax.custom_jvp) needs less.",
                ReverseOnlyLossWarning,
                stacklevel=2,
            )
            return jax.grad(value)(w, arrays)
        leaves, structure = jax.tree.flatten(w)
        others_read = [*jax.tree.leaves(arrays), *program.consts]
        return jax.tree.unflatten(structure, _gradient(program.jaxpr, leaves, others_read))

    return gradient


def _gradient_in(program: Jaxpr, moving: Sequence[int]) -> Callable:
    """The gradient of a traced loss in these of its leaves (arguments, then constants)."""

    def gradient(*leaves: Array) -> list[Array]:
        def loss(moved: list[Array]) -> Array:
            at = list(leaves)
            for i, leaf in zip(moving, moved, strict=True):
                at[i] = leaf
            arguments = len(program.invars)
            return jaxpr_as_fun(ClosedJaxpr(program, at[arguments:]))(*at[:arguments])[0]

        return jax.grad(loss)([leaves[i] for i in moving])

    return gradient


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradient(program: Jaxpr, w: list[Array], others: list[Array]) -> list[Array]:
    return _gradient_in(program, range(len(w)))(*w, *others)


@partial(_gradient.defjvp, symbolic_zeros=True)
def _gradient_jvp(program: Jaxpr, primals: tuple, tangents: tuple) -> tuple:
    w, point = primals[0], [*primals[0], *primals[1]]
    along = [*tangents[0], *tangents[1]]
    size, count = len(point), len(w)
    moving = [i for i, t in enumerate(along) if not isinstance(t, SymbolicZero)]

    def pull(*arguments: Array) -> list[Array]:
        """`(point, u) -> ∂/∂(moving) ⟨∂f/∂w, u⟩`."""
        # Not before `u` is known: what it needs would be held meanwhile.
        arguments = jax.lax.optimization_barrier(arguments)
        rest, u = arguments[count:size], arguments[size:]
        gradient = _gradient_in(program, moving)
        return jax.jvp(lambda *w: gradient(*w, *rest), arguments[:count], tuple(u))[1]

    traced = jax.make_jaxpr(pull)(*point, *w)
    # A leaf that does not enter the gradient in `w` (a learning rate) must stay without derivative.
    reached = [
        n for n, i in enumerate(moving) if i < count or any(inputs_of(traced.jaxpr, n)[size:])
    ]
    moving_on = [moving[n] for n in reached]

    def push(*arguments: Array) -> list[Array]:
        """`(point, tangents) -> ` the derivative of `∂f/∂w` along them."""
        at, tangents = list(arguments[:size]), arguments[size:]

        def gradient(*moved: Array) -> list[Array]:
            for i, leaf in zip(moving_on, moved, strict=True):
                at[i] = leaf
            return _gradient_in(program, range(count))(*at)

        return jax.jvp(gradient, tuple(at[i] for i in moving_on), tuple(tangents))[1]

    value = _gradient(program, *primals)
    if not moving_on:
        return value, [jnp.zeros_like(leaf) for leaf in w]

    def pulled(*arguments: Array) -> list[Array]:
        cotangents = jaxpr_as_fun(traced)(*arguments)
        return [cotangents[n] for n in reached]

    return value, linear_map(push, pulled, point, [along[i] for i in moving_on], w)
