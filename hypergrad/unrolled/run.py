"""The inner run as a map that can be stepped and differentiated."""

import copy
from collections.abc import Callable, Collection
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr
from jaxtyping import Array, PyTree, Scalar

from hypergrad.jumps import hidden_reads
from hypergrad.linear import vector
from hypergrad.paths import leaf_names
from hypergrad.problem import same_form
from hypergrad.programs import parts
from hypergrad.restricted import RestrictedProblem
from hypergrad.unrolled.steps import InnerStep

_FLAT = {"sign", "round", "floor", "ceil"}


class Dynamics:
    """The run as a map of its differentiable part, for one call of a verb.

    `x` is the differentiable part of `(params, step state)`, `rest` its other arrays (counters,
    keys). Hyperparameters `h` are held in at least float32, in which their derivatives add up, and
    are given to the step in the user's dtypes.
    """

    def __init__(
        self,
        step: InnerStep,
        given: RestrictedProblem,
        start: Callable[[PyTree], tuple[PyTree, PyTree]],
        stacked: bool,
    ) -> None:
        self._given = given
        self.h = vector.widen(given.h)
        self._step, self._start_of, self._stacked = step, start, stacked
        (x, rest), self._static = _parts(start(given.hparams))
        self.x = jax.tree.map(lambda a: _strong(a, a.dtype), x)
        self.rest = jax.tree.map(lambda a: _strong(a, a.dtype), rest)
        self.partial = False

    @property
    def keeps_biased(self) -> bool:
        """See `BilevelProblem.biased`."""
        return self._given.problem.biased == "keep"

    def like(self, h: PyTree) -> PyTree:
        """What these are in the user's dtypes."""
        return jax.tree.map(
            lambda a, b: None if a is None else b,
            h,
            self._given.hparams,
            is_leaf=lambda a: a is None,
        )

    def without(self, names: Collection[str]) -> "Dynamics":
        """The same run, in which these hyperparameters are constants."""
        wanted = [name not in names for name in leaf_names(self.h)]
        other = copy.copy(self)
        other.h = eqx.filter(self.h, jax.tree.unflatten(jax.tree.structure(self.h), wanted))
        return other

    def hidden(self) -> dict[str, tuple[str, ...]]:
        """For each hyperparameter: through what it acts that no derivative sees.

        See `hypergrad.jumps`. Looked at are the start, one step, the losses in it, and the outer
        loss, each for what it reads itself: the params of a run depend on all hyperparameters.
        """
        names = leaf_names(self.h)
        t = jnp.zeros((), jnp.int32)
        key = self._key(t)

        def step(h: PyTree, x: PyTree, rest: PyTree, other: PyTree) -> PyTree:
            point = (*self.unpack(x, rest), self.hparams(h), self.hparams(other))
            return self._step.settings(self._given.problem, *point, self.batch(t), key)

        def of_loss(loss: Callable) -> Callable:
            def at(h: PyTree, x: PyTree, rest: PyTree) -> PyTree:
                return loss(self.unpack(x, rest)[0], self.hparams(h), self.batch(t), key)

            return at

        def read(function: Callable, *others: PyTree) -> list[tuple[str, ...]]:
            arrays = lambda *a: eqx.filter(function(*a), is_array)  # noqa: E731
            return hidden_reads(jax.make_jaxpr(arrays)(self.h, *others), range(len(names)))

        found = [
            read(self.start),
            read(step, self.x, self.rest, self.h),
            read(lambda h, x: self.outer_loss(x, h), self.x),
            *(read(of_loss(f), self.x, self.rest) for f in self._step.losses(self._given.problem)),
        ]
        merged = (tuple(sorted(set().union(*reasons))) for reasons in zip(*found, strict=True))
        return dict(zip(names, merged, strict=True))

    def flat_operations(self) -> list[str]:
        """What a step applies that is constant almost everywhere, comparisons aside; sorted.

        Without what the gradients of the losses apply, such as the sign for an absolute value.
        """
        t = jnp.zeros((), jnp.int32)

        def gradients(x: PyTree, rest: PyTree, h: PyTree) -> list[PyTree]:
            def total(x: PyTree, loss: Callable) -> Array:
                out = loss(self.unpack(x, rest)[0], self.hparams(h), self.batch(t), self._key(t))
                parts = jax.tree.leaves(eqx.filter(out, eqx.is_inexact_array))
                return sum(map(jnp.sum, parts), jnp.zeros(()))

            losses = self._step.losses(self._given.problem)
            return [jax.grad(total)(x, loss) for loss in losses]

        def applied(function: Callable) -> set[str]:
            return _operations(jax.make_jaxpr(function)(self.x, self.rest, self.h).jaxpr)

        step = applied(lambda x, rest, h: self(x, rest, h, t))
        return sorted(_FLAT & (step - applied(gradients)))

    def hparams(self, h: PyTree) -> PyTree:
        """The hyperparameters in full, as the user's functions expect them."""
        return eqx.combine(vector.cast_like(h, self.like(h)), self._given.hparams)

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

    def outer_loss(self, x: PyTree, h: PyTree) -> Scalar:
        """At params in the differentiable part `x` of a run's end."""
        return self.outer_loss_and_aux(x, h)[0]

    def outer_loss_and_aux(self, x: PyTree, h: PyTree) -> tuple[Scalar, PyTree]:
        """The outer loss and its auxiliary output."""
        batch, key = self._given.outer_batch, self._given.key
        return self._given.problem.outer_loss(self.params(x), self.hparams(h), batch, key)

    def outer_derivative(self, x: PyTree) -> tuple[Scalar, PyTree, PyTree, PyTree]:
        """Value and auxiliary output of the outer loss, its derivatives in `x` and in `h`."""
        (value, aux), (by_x, by_h) = jax.value_and_grad(
            self.outer_loss_and_aux, argnums=(0, 1), has_aux=True
        )(x, self.h)
        return value, aux, by_x, by_h

    def batch(self, t: Array) -> PyTree:
        """The data of step `t`."""
        if not self._stacked:
            return self._given.inner_batch
        return jax.tree.map(
            lambda a: lax.dynamic_index_in_dim(a, t, keepdims=False) if is_array(a) else a,
            self._given.inner_batch,
        )

    def _key(self, t: Array) -> Array | None:
        key = self._given.key
        return None if key is None else jax.random.fold_in(key, t)

    def __call__(self, x: PyTree, rest: PyTree, h: PyTree, t: Array) -> tuple[PyTree, PyTree]:
        """Step number `t` (from 0), which has its own batch and key."""
        data = self.hparams(h), self.batch(t), self._key(t)
        out = self._step.step(self._given.problem, *self.unpack(x, rest), *data)
        (new_x, new_rest), _ = _parts(out)
        return _like(new_x, x, "params or its state"), _like(new_rest, rest, "a counter")

    def advance(
        self, x: PyTree, rest: PyTree, h: PyTree, first: Array | int, last: Array | int
    ) -> tuple[PyTree, PyTree]:
        """Steps `first` up to, without, `last`."""
        return lax.fori_loop(first, last, lambda t, c: self(c[0], c[1], h, t), (x, rest))


def _operations(program: Jaxpr) -> set[str]:
    found = {eqn.primitive.name for eqn in program.eqns}
    return found.union(*(_operations(part) for eqn in program.eqns for part in parts(eqn)))


def _parts(tree: PyTree) -> tuple[tuple[PyTree, PyTree], PyTree]:
    """What is differentiated and the other arrays; what is no array."""
    arrays, static = eqx.partition(tree, is_array)
    return eqx.partition(arrays, eqx.is_inexact_array), static


def is_array(leaf: Any) -> bool:
    """A JAX or numpy array."""
    return isinstance(leaf, jax.Array | np.ndarray)


def _like(new: PyTree, old: PyTree, what: str) -> PyTree:
    """`new` in the dtypes of `old`, after a check of structure and shapes."""
    if not same_form(old, new):
        raise ValueError(
            f"An inner step must keep structure and shapes; of {what} it expected "
            f"{jax.tree.map(jnp.shape, old)}, received {jax.tree.map(jnp.shape, new)}."
        )
    return jax.tree.map(lambda a, b: _strong(a, b.dtype), new, old)


def _strong(leaf: Any, dtype: Any) -> Array:
    """`leaf` in this dtype, and not weakly typed: the loop's carry must keep its type."""
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return lax.convert_element_type(leaf, dtype)
