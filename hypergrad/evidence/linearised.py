"""A network linearised at its weights, in units of its prior and of its likelihood."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from hypergrad.evidence.problem import BayesianModel


class Linearised(eqx.Module):
    """Rows of the scaled Jacobian `Sᵀ J P₀^{-½}`: what every log determinant is made of.

    `S Sᵀ` is the curvature of the likelihood, `P₀` the precision of the prior. With `A` all of its
    rows the log determinant is `log det(I + Aᵀ A) = log det(I + A Aᵀ)`: the generalised
    Gauss-Newton form over the weights, and the form of the neural tangent kernel over the data.
    """

    model: BayesianModel
    params: PyTree
    hparams: PyTree
    batch: PyTree

    @property
    def examples(self) -> int:
        """Number of examples."""
        return jnp.shape(self.batch[1])[0]

    @property
    def outputs(self) -> int:
        """Number of outputs of the network for one example."""
        x = jax.tree.map(lambda leaf: leaf[0], self.batch[0])
        return eqx.filter_eval_shape(self.model.outputs, self.params, self.hparams, x).size

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(w.size for w in jax.tree.leaves(eqx.filter(self.params, eqx.is_inexact_array)))

    def rows(
        self, indices: Int[Array, " examples"], output: Int[Array, ""] | None = None
    ) -> list[Array]:
        """Rows of some examples: one array `(examples, outputs, weights of the leaf...)` a leaf.

        **Arguments:**

        - `indices`: which examples; rows of negative ones are zero, and count for nothing.
        - `output`: only this column of `S`, for the price of one; the axis of outputs has size 1.
        """
        w, static = eqx.partition(self.params, eqx.is_inexact_array)
        scale = jax.tree.map(jax.lax.rsqrt, self.model.precisions(self.params, self.hparams))

        def of(index: Array) -> PyTree:
            x = jax.tree.map(lambda leaf: leaf[index], self.batch[0])

            def predict(w: PyTree) -> Array:
                return self.model.outputs(eqx.combine(w, static), self.hparams, x)

            outputs, pull = jax.vjp(predict, w)
            columns = self.model.root(outputs, self.hparams).T
            if output is not None:
                columns = columns[output][None]
            rows = jax.vmap(lambda column: pull(column)[0])(columns)
            return jax.tree.map(
                lambda row, unit: jnp.where(index >= 0, row * unit, jnp.zeros_like(row)),
                rows,
                scale,
            )

        return jax.tree.leaves(jax.vmap(of)(indices))
