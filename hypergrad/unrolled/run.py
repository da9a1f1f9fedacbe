"""The inner run as a map that can be stepped and differentiated, and what its end depends on."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from hypergrad.linear import vector
from hypergrad.paths import inputs_of, leaf_names
from hypergrad.problem import BilevelProblem
from hypergrad.unrolled.steps import InnerStep


class Dynamics:
    """The run as a map of its differentiable part, for one call of a verb.

    `x` is the differentiable part of `(params, step state)`, `rest` its other arrays (counters,
    keys). Hyperparameters `h` are held in at least float32, in which their derivatives add up, and
    are given to the step in the user's dtypes.
    """

    def __init__(
        self,
        step: InnerStep,
        problem: BilevelProblem,
        start: Callable[[PyTree], tuple[PyTree, PyTree]],
        hparams: PyTree,
        batch: PyTree,
        key: Array | None,
        stacked: bool,
    ) -> None:
        h, self._h_static = eqx.partition(hparams, eqx.is_inexact_array)
        self._h_like = h
        self.h = vector.widen(h)
        self._step, self._problem, self._start_of = step, problem, start
        self._batch, self._key, self._stacked = batch, key, stacked
        arrays, self._static = eqx.partition(start(hparams), is_array)
        x, rest = eqx.partition(arrays, eqx.is_inexact_array)
        self.x = jax.tree.map(lambda a: _strong(a, a.dtype), x)
        self.rest = jax.tree.map(lambda a: _strong(a, a.dtype), rest)

    def hparams(self, h: PyTree) -> PyTree:
        """The hyperparameters in full, as the user's functions expect them."""
        h = vector.cast_like(h, self._h_like)
        return eqx.combine(h, self._h_static)

    def start(self, h: PyTree) -> PyTree:
        """The differentiable part of the start."""
        x = eqx.filter(self._start_of(self.hparams(h)), eqx.is_inexact_array)
        return jax.tree.map(lambda a: _strong(a, a.dtype), x)

    def unpack(self, x: PyTree, rest: PyTree) -> tuple[PyTree, PyTree]:
        """Params and step state in full."""
        return eqx.combine(x, rest, self._static)

    def params(self, x: PyTree) -> PyTree:
        """Params in full."""
        return eqx.combine(x[0], self.rest[0], self._static[0])

    def batch(self, t: Array) -> PyTree:
        """The data of step `t`."""
        if not self._stacked:
            return self._batch
        return jax.tree.map(
            lambda a: lax.dynamic_index_in_dim(a, t, keepdims=False) if is_array(a) else a,
            self._batch,
        )

    def __call__(self, x: PyTree, rest: PyTree, h: PyTree, t: Array) -> tuple[PyTree, PyTree]:
        """Step number `t` (from 0), which has its own batch and key."""
        params, state = self.unpack(x, rest)
        key = None if self._key is None else jax.random.fold_in(self._key, t)
        out = self._step.step(self._problem, params, state, self.hparams(h), self.batch(t), key)
        arrays, _ = eqx.partition(out, is_array)
        new_x, new_rest = eqx.partition(arrays, eqx.is_inexact_array)
        return _like(new_x, x, "params or its state"), _like(new_rest, rest, "a counter")

    def advance(
        self, x: PyTree, rest: PyTree, h: PyTree, first: Array | int, last: Array | int
    ) -> tuple[PyTree, PyTree]:
        """Steps `first` up to, without, `last`."""
        return lax.fori_loop(first, last, lambda t, c: self(c[0], c[1], h, t), (x, rest))


def require_effect(
    run: Dynamics,
    outer: Callable,
    first: int,
    last: int,
    *,
    estimator: str,
    from_start: bool = True,
    forward: bool = False,
) -> None:
    """Refuse hyperparameters that have no effect on the outer loss, found by tracing.

    **Arguments:**

    - `run`: the inner run.
    - `outer`: `outer(x, h) -> loss` at its end.
    - `first`, `last`: the steps that are differentiated, without `last`.
    - `estimator`: its name, for the message.
    - `from_start`: the start is differentiated, too.
    - `forward`: trace in forward mode (line searches have no reverse, `jax.custom_vjp` no forward).

    **Raises:** `ValueError` naming each leaf whose derivative is structurally zero.
    """
    names = leaf_names(run.h)
    if not names:
        raise ValueError(
            "There is nothing to differentiate: hparams has no leaf that is a floating-point array."
        )

    def blind(from_start: bool) -> list[str]:
        def end(h: PyTree) -> Array:
            def body(carry: tuple, t: Array) -> tuple:
                return run(carry[0], carry[1], h, t), None

            carry = (run.start(h) if from_start else run.x, run.rest)
            if last - first == 1:
                # Tracing a loop finds what reaches the end after any number of steps.
                carry = run(carry[0], carry[1], h, jnp.asarray(first))
            else:
                carry, _ = lax.scan(body, carry, jnp.arange(first, last))
            return outer(carry[0], h)

        # Nothing is run. A derivative is structurally zero if, in the traced program, it does not
        # depend on the tangent (on the cotangent).
        if forward:
            pushed = jax.make_jaxpr(lambda h, tangent: jax.jvp(end, (h,), (tangent,))[1])
            seen = inputs_of(pushed(run.h, run.h).jaxpr, 0)[len(names) :]
        else:
            pulled = jax.make_jaxpr(lambda h, cotangent: jax.vjp(end, h)[1](cotangent))
            jaxpr = pulled(run.h, jax.eval_shape(end, run.h)).jaxpr
            seen = [inputs_of(jaxpr, i)[-1] for i in range(len(names))]
        return [name for name, ok in zip(names, seen, strict=True) if not ok]

    dead = blind(from_start)
    if not dead:
        return
    if not from_start and not set(dead) & set(blind(from_start=True)):
        reason = (
            "it acts through the start only, which is held constant here. `Unrolled` from a cold "
            "start can see it"
        )
    else:
        reason = (
            "neither the steps nor the outer loss have a derivative in it. A threshold, a rounding "
            "or a stop_gradient hides it (relax it), or nothing reads it (leave it to a searcher)"
        )
    listed = ", ".join(repr(name) for name in dead)
    raise ValueError(f"{estimator} cannot see hyperparameter {listed}: {reason}.")


def is_array(leaf: Any) -> bool:
    """A JAX or numpy array."""
    return isinstance(leaf, jax.Array | np.ndarray)


def _like(new: PyTree, old: PyTree, what: str) -> PyTree:
    """`new` in the dtypes of `old`, after a check of structure and shapes."""
    expected, received = jax.tree.map(jnp.shape, old), jax.tree.map(jnp.shape, new)
    if expected != received:
        raise ValueError(
            f"An inner step must keep structure and shapes; of {what} it expected {expected}, "
            f"got {received}."
        )
    return jax.tree.map(lambda a, b: _strong(a, b.dtype), new, old)


def _strong(leaf: Any, dtype: Any) -> Array:
    """`leaf` in this dtype, and not weakly typed: the loop's carry must keep its type."""
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return lax.convert_element_type(leaf, dtype)
