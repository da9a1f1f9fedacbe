"""Inner problems with arrays that are not trained: the loss itself renews them.

Running statistics of batch normalisation are the usual case ("mutable collections" in Flax). No
gradient moves them: each evaluation of the training loss returns their next values, and at the
inner solution they are a fixed point of that.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_function_fields
from hypergrad.linear import vector
from hypergrad.residual import Oriented


class Stateful(Oriented):
    """Weights that are trained, and a state that the inner loss renews.

    The inner parameters are the pair `(weights, state)`. What vanishes at the solution is

        r = (∂loss/∂weights, state − next state)

    Give it as `BilevelProblem(None, outer, optimality=Stateful(loss))`. Optimizers of optax move
    the weights; the state follows, in `OptaxSolver` and in unrolling. Its gradient is zero to the
    optimizer, which sees the pair. Implicit differentiation solves for both: the state depends on
    the hyperparameters through the weights. The outer loss gets the pair.

    **Arguments:**

    - `loss`: `loss((weights, state), hparams, batch) -> (loss, next state)`. The next state has the
      structure, shapes and dtypes of the state; leaves of it that are not floating point (counters)
      are carried.

    For a stochastic problem `loss` gets a fourth argument `key`.
    """

    loss: Callable

    def __check_init__(self) -> None:
        require_function_fields(self, "loss")

    def parts(self) -> list[Callable]:
        """The user's functions, each as `(params, hparams, batch[, key])`."""
        return [self.value, lambda *arguments: eqx.filter(self.renewed(*arguments), eqx.is_array)]

    def value(self, params: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> Scalar:
        """The loss alone."""
        return self._evaluated(params, hparams, batch, *key)[0]

    def renewed(self, params: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> PyTree:
        """The next state."""
        return self._evaluated(params, hparams, batch, *key)[1]

    def evaluated(
        self, params: PyTree, hparams: PyTree, batch: PyTree, *key: Array
    ) -> tuple[Scalar, PyTree, PyTree]:
        """The loss, its gradient like params and zero in the state, and the next state."""
        weights, state = pair(params)
        w, static = eqx.partition(weights, eqx.is_inexact_array)
        (value, moved), gradient = jax.value_and_grad(
            lambda w: self._evaluated((eqx.combine(w, static), state), hparams, batch, *key),
            has_aux=True,
        )(w)
        still = vector.zeros_like(eqx.filter(state, eqx.is_inexact_array))
        return value, (gradient, still), moved

    def __call__(self, params: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> PyTree:
        """The residual at `params = (weights, state)`."""
        _, (gradient, _), moved = self.evaluated(params, hparams, batch, *key)
        old, new = (eqx.filter(s, eqx.is_inexact_array) for s in (params[1], moved))
        return gradient, vector.sub(old, new)

    def _evaluated(
        self, params: PyTree, hparams: PyTree, batch: PyTree, *key: Array
    ) -> tuple[Scalar, PyTree]:
        _, state = pair(params)
        # A copy: equinox marks a state as used up once a layer has renewed it.
        out = self.loss(jax.tree.map(lambda leaf: leaf, params), hparams, batch, *key)
        if not (isinstance(out, tuple) and len(out) == 2):
            raise ValueError(
                f"Stateful: the loss expected (loss, next state), received {type(out).__name__}."
            )
        value, moved = jnp.asarray(out[0]), out[1]
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"Stateful: the loss expected a real scalar, received shape {value.shape}, "
                f"dtype {value.dtype}."
            )
        expected, received = _forms(state), _forms(moved)
        if expected != received:
            raise ValueError(
                f"Stateful: the next state expected the form of the state, {expected}, "
                f"received {received}."
            )
        return value, moved


def pair(params: PyTree) -> tuple[PyTree, PyTree]:
    """Weights and state.

    **Raises:** `ValueError` for params that are no pair.
    """
    if not (isinstance(params, tuple) and len(params) == 2):
        raise ValueError(
            "With Stateful, params: expected the pair (weights, state), received "
            f"{type(params).__name__}."
        )
    return params


def _forms(tree: PyTree) -> dict[str, str]:
    """Type and shape of each array."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array_like))
    return {
        jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in leaves
    }
