"""The training objective with a weight for each example."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.problem import BilevelProblem


class WeightedExamples(eqx.Module):
    """`Σ_i p_i f_i(w) / Σ_i p_i`: an inner loss whose hyperparameters are the weights `p`.

    `f_i(w) = inner(w, hparams, example i as a batch of one)`, a penalty included. At
    equal weights it is the inner loss itself, if that is a mean over examples; with `p_i = 0` it is
    the inner loss without example `i`. A batch whose weights are all zero has the loss zero.

    **Arguments:**

    - `problem`: the problem whose inner loss is meant.
    - `hparams`: its hyperparameters, held fixed.
    - `examples`: an inner batch with all examples, along the leading axis of every array.
    """

    problem: BilevelProblem
    hparams: PyTree
    examples: PyTree

    def __check_init__(self) -> None:
        sizes = {
            jax.tree_util.keystr(path, simple=True, separator="/") or "examples": leaf.shape[:1]
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.examples)
            if eqx.is_array(leaf)
        }
        if len(set(sizes.values())) != 1 or () in sizes.values():
            raise ValueError(
                "examples: expected arrays with one leading axis over the examples, received "
                f"leading axes {sizes}."
            )

    @property
    def size(self) -> int:
        """The number of examples."""
        return next(a.shape[0] for a in jax.tree.leaves(self.examples) if eqx.is_array(a))

    def losses(
        self, params: PyTree, chosen: Int[Array, " batch"], key: Array | None = None
    ) -> Array:
        """`f_i` for the examples with these numbers; each has a key of its own."""
        alone = self._alone()
        keys = None if key is None else jax.vmap(lambda i: jax.random.fold_in(key, i))(chosen)
        return jax.vmap(lambda i, k: alone(params, i, k))(chosen, keys)

    def __call__(
        self,
        params: PyTree,
        weights: Array,
        chosen: Int[Array, " batch"],
        key: Array | None = None,
    ) -> Scalar:
        """The loss on the examples with these numbers, e.g. `jnp.arange(size)`."""
        p = weights[chosen]
        total = jnp.sum(p)
        return jnp.sum(p * self.losses(params, chosen, key)) / jnp.where(total == 0, 1, total)

    def _alone(self) -> Callable:
        def loss(params: PyTree, i: Array, key: Array | None) -> Scalar:
            one = jax.tree.map(lambda a: a[i][None] if eqx.is_array(a) else a, self.examples)
            return self.problem.inner_loss(params, self.hparams, one, key)[0]

        return loss
