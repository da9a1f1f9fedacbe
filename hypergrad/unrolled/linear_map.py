"""A linear map that comes with its transpose.

JAX transposes a linear map by transposing its program, for which every intermediate value must be
stored. Some maps have a transpose that is another, cheaper program: a second derivative is
symmetric. `jax.custom_vjp` would give one to reverse mode only; here all modes work, to any order,
and under `vmap`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


def linear_map(
    forward: Callable,
    backward: Callable,
    point: Sequence[Array],
    along: Sequence[Array],
    outputs: Sequence[Any],
) -> list[Array]:
    """`forward(*point, *along)`, linear in `along`.

    **Arguments:**

    - `forward`: `forward(*point, *along) -> list`.
    - `backward`: its transpose in `along`, `backward(*point, *cotangents) -> list` like `along`.
    - `point`: what the map depends on.
    - `along`: what it is applied to.
    - `outputs`: arrays, or their types, like the result.
    """
    return _apply.bind(
        *point,
        *along,
        forward=forward,
        backward=backward,
        outputs=tuple(jax.core.ShapedArray(a.shape, a.dtype) for a in outputs),
        points=len(point),
    )


def _evaluate(*arguments: Array, forward: Callable, **_: Any) -> list[Array]:
    return forward(*arguments)


def _pushed(primals: Sequence, tangents: Sequence, *, forward: Callable, **parameters: Any) -> Any:
    # A third derivative: of the program itself.
    tangents = [ad.instantiate_zeros(t) for t in tangents]
    return jax.jvp(lambda *a: list(forward(*a)), tuple(primals), tuple(tangents))


def _transposed(
    cotangents: Sequence,
    *arguments: Any,
    forward: Callable,
    backward: Callable,
    points: int,
    **_: Any,
) -> list:
    point, along = arguments[:points], arguments[points:]
    cotangents = [ad.instantiate_zeros(c) for c in cotangents]
    pulled = linear_map(backward, forward, point, cotangents, [a.aval for a in along])
    return [None] * points + list(pulled)


def _batched(
    arguments: Sequence,
    axes: Sequence[int | None],
    *,
    forward: Callable,
    backward: Callable,
    outputs: tuple,
    points: int,
) -> tuple:
    size = next(a.shape[i] for a, i in zip(arguments, axes, strict=True) if i is not None)
    # All that the map is linear in has the axis: the transpose then has nothing to add up.
    along = [
        jnp.broadcast_to(a, (size, *a.shape)) if i is None else jnp.moveaxis(a, i, 0)
        for a, i in zip(arguments[points:], axes[points:], strict=True)
    ]
    at = tuple(axes[:points])

    def over(function: Callable, arity: int) -> Callable:
        return jax.vmap(function, in_axes=at + (0,) * arity)

    types = [jax.ShapeDtypeStruct((size, *o.shape), o.dtype) for o in outputs]
    programs = over(forward, len(along)), over(backward, len(outputs))
    return linear_map(*programs, arguments[:points], along, types), [0] * len(outputs)


_apply = Primitive("linear_map")
_apply.multiple_results = True
_apply.def_impl(_evaluate)
_apply.def_abstract_eval(lambda *_, outputs, **__: list(outputs))
mlir.register_lowering(_apply, mlir.lower_fun(_evaluate, multiple_results=True))
ad.primitive_jvps[_apply] = _pushed
ad.primitive_transposes[_apply] = _transposed
batching.primitive_batchers[_apply] = _batched
