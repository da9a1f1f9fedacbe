"""Losses written in PyTorch, for estimators in JAX.

The derivative of order k of a scalar function is a symmetric form of k directions. With the last of
them left open it maps a point and `k − 1` directions to a vector: the gradient, the product with
the Hessian, and so on. Its derivative in the point is the form of the next order, in a direction
the form itself, and so is its transpose, that direction and the open one exchanged. One operation
is enough for all orders and both modes; it runs `torch.func` in a callback.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.flatten_util import ravel_pytree
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_function


def from_torch(loss: Callable) -> Callable[..., Scalar]:
    """A loss written in PyTorch as a function of JAX arrays, for a `BilevelProblem`.

    Its derivatives in `params` and `hparams`, of any order and in both modes, are those of
    `torch.func`. To tracing it is opaque: that a hyperparameter is not read, or acts by a rounding
    as well, is not found. A batch has no derivative.

    **Arguments:**

    - `loss`: `loss(params, hparams, batch) -> scalar tensor`, of the same pytrees, of tensors on
      the CPU, integers as `int64`. It must compute the same at each call (no dropout) by operations
      that `torch.func` differentiates.

    **Returns:** `function(params, hparams, batch)`, for `jit`, `grad` and `vmap` (one by one).

    **Raises:** `ImportError` without PyTorch, `ValueError` for a `loss` that is no function. Errors
    of the loss itself come as errors of a JAX callback, with their text.
    """
    require_function("from_torch", "loss", loss)
    if find_spec("torch") is None:
        raise ImportError("from_torch needs PyTorch: pip install torch")

    def function(params: PyTree, hparams: PyTree, batch: PyTree = None) -> Scalar:
        paths, structure = jax.tree_util.tree_flatten_with_path((params, hparams, batch))
        varied: list[Array] = []
        fixed: list[Array] = []
        shapes: list = []
        for path, leaf in paths:
            array = _array(path, leaf)
            moves = path[0].idx < 2 and array.dtype.kind == "f"
            (varied if moves else fixed).append(array)
            shapes.append((array.shape, array.dtype.name) if moves else None)
        form = _Form(loss, structure, tuple(shapes))
        return _form_p.bind(ravel_pytree(varied)[0], *fixed, form=form, order=0)

    return function


def _array(path: tuple, leaf: Any) -> Array:
    """A leaf as an array; refused by name if PyTorch has no such type."""
    known = isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float)
    dtype = jnp.result_type(leaf) if known else None
    if getattr(dtype, "kind", None) not in tuple("fiub"):  # bfloat16 and keys are of other kinds
        name = ("params", "hparams", "batch")[path[0].idx] + jax.tree_util.keystr(path[1:])
        raise ValueError(
            f"from_torch: {name}: expected an array of float16, float32, float64, integers or "
            f"booleans, received {dtype or type(leaf).__name__}."
        )
    return jnp.asarray(leaf)


@dataclass(frozen=True)
class _Form:
    """A loss in PyTorch; shapes and types of what it is differentiated in, `None` for the rest."""

    loss: Callable
    structure: Any
    shapes: tuple[tuple[tuple[int, ...], str] | None, ...]

    def __call__(self, order: int, *arguments: Any) -> np.ndarray:
        """Run it, by NumPy and PyTorch alone: JAX in a callback may wait for itself."""
        import torch

        arrays = [np.array(a) for a in arguments]  # copies: PyTorch wants to write to its memory
        whole = [a.astype(np.int64) if a.dtype.kind in "iu" else a for a in arrays]
        point, *rest = map(torch.from_numpy, whole)
        directions, fixed = rest[: max(order - 1, 0)], rest[max(order - 1, 0) :]
        sizes = [int(np.prod(s[0])) for s in self.shapes if s is not None]

        def loss(point: Any) -> Any:
            parts, others = iter(point.split(sizes)), iter(fixed)
            leaves = [
                next(others) if s is None else next(parts).reshape(s[0]).to(getattr(torch, s[1]))
                for s in self.shapes
            ]
            value = self.loss(*jax.tree.unflatten(self.structure, leaves))
            shape = getattr(value, "shape", type(value).__name__)
            if shape != () or not isinstance(value, torch.Tensor):
                raise ValueError(f"from_torch: loss: expected a scalar tensor, received {shape}.")
            return value

        function = loss if order == 0 else torch.func.grad(loss)
        for direction in directions:
            function = partial(
                lambda f, d, x: torch.func.jvp(f, (x,), (d,))[1], function, direction
            )
        return function(point).detach().numpy().astype(arrays[0].dtype)


def _shape(point: Any, *_: Any, form: _Form, order: int) -> jax.core.ShapedArray:
    return jax.core.ShapedArray(point.shape if order else (), point.dtype)


def _call(*arguments: Any, form: _Form, order: int) -> Array:
    shape = _shape(*arguments, form=form, order=order)
    result = jax.ShapeDtypeStruct(shape.shape, shape.dtype)
    return jax.pure_callback(partial(form, order), result, *arguments)


def _jvp(primals: Any, tangents: Any, *, form: _Form, order: int) -> tuple[Array, Array]:
    parts = []
    for i, tangent in enumerate(tangents):
        if isinstance(tangent, ad.Zero):
            continue
        if i >= max(order, 1):
            raise ValueError("from_torch: batch: expected no derivative in it, received a tangent.")
        added = int(i == 0)  # the point gets one more direction, a direction is replaced
        first, last = (
            (primals[:order], primals[order:]) if added else (primals[:i], primals[i + 1 :])
        )
        arguments = (*first, tangent, *last) if order else primals
        moved = _form_p.bind(*arguments, form=form, order=order + added)
        parts.append(moved if order else jnp.vdot(moved, tangent))
    return _form_p.bind(*primals, form=form, order=order), sum(parts[1:], parts[0])


def _transpose(cotangent: Any, *arguments: Any, form: _Form, order: int) -> list:
    open_ = [ad.is_undefined_primal(a) for a in arguments]
    given = [cotangent if o else a for o, a in zip(open_, arguments, strict=True)]
    found = _form_p.bind(*given, form=form, order=order)
    return [found if o else None for o in open_]


def _batched(arguments: Any, axes: Any, *, form: _Form, order: int) -> tuple[Array, int]:
    mapped = {
        i: jnp.moveaxis(arguments[i], axis, 0) for i, axis in enumerate(axes) if axis is not None
    }

    def one(entries: dict[int, Array]) -> Array:
        filled = dict(enumerate(arguments)) | entries
        return _form_p.bind(*filled.values(), form=form, order=order)

    return jax.lax.map(one, mapped), 0


_form_p = Primitive("torch_form")
_form_p.def_impl(lambda *a, form, order: jnp.asarray(form(order, *a)))
_form_p.def_abstract_eval(_shape)
mlir.register_lowering(_form_p, mlir.lower_fun(_call, multiple_results=False))
ad.primitive_jvps[_form_p] = _jvp
ad.primitive_transposes[_form_p] = _transpose
batching.primitive_batchers[_form_p] = _batched
