"""Log determinants of a linearised network: exact, and what is cheaper.

With `A` the scaled Jacobian (`hypergrad.evidence.Linearised`) the term of the evidence that costs
is `log det(I + A Aᵀ)`. Leaving out the blocks between the parts of any partition of the rows, or of
the columns, can only raise it (Fischer's inequality), and so bounds the evidence from below.

Immer, van der Ouderaa, van der Wilk, Rätsch and Schölkopf, "Stochastic Marginal Likelihood
Gradients using Neural Tangent Kernels" (ICML 2023).
"""

from abc import abstractmethod
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from hypergrad.evidence.linearised import Linearised
from hypergrad.expected import require_choice, require_count


class Bound(eqx.Module):
    """An upper bound of `log det(I + A Aᵀ)`, as a mean over draws of parts of the data."""

    @property
    def random(self) -> bool:
        """Whether the draws are a sample, and a key is needed."""
        return False

    @abstractmethod
    def draws(self, examples: int, outputs: int, key: Array | None) -> PyTree:
        """The parts of the data that each estimate uses: arrays with a leading axis of draws."""

    @abstractmethod
    def log_det(self, network: Linearised, draw: PyTree) -> Scalar:
        """The estimate of one draw; the mean over all draws is the bound."""


class _AllOfTheData(Bound):
    """Bounds that look at all examples at once."""

    def draws(self, examples: int, outputs: int, key: Array | None) -> PyTree:
        """See `Bound.draws`: one, of all examples."""
        return jnp.arange(examples)[None]


class Exact(_AllOfTheData):
    """The log determinant itself, of the smaller of the two matrices.

    **Arguments:**

    - `form`: `"ggn"`: over the weights; `"ntk"`: over examples times outputs; default: the smaller.
    """

    form: Literal["ggn", "ntk"] | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.form not in ("ggn", "ntk", None):
            raise ValueError(
                f"Exact: 'form': expected 'ggn', 'ntk' or None, received {self.form!r}."
            )

    def log_det(self, network: Linearised, draw: PyTree) -> Scalar:
        """See `Bound.log_det`."""
        kernel = network.examples * network.outputs < network.weights
        if (self.form or ("ntk" if kernel else "ggn")) == "ntk":
            return _log_det(_kernel(network.rows(draw)))
        return _log_det(_gram(_flat(network.rows(draw))))


class Subsets(Bound):
    """Kernels of subsets of the data, whose log determinants add up: `N / size` small ones.

    **Arguments:**

    - `size`: examples in a subset. The last is smaller if `size` does not divide their number.
    - `outputs`: `"joint"`: one kernel of `size · outputs` rows for a subset; `"each"`: one of
      `size` rows for every output; `"one"`: for one random output only, times their number (needs
      `draws`). The last two are looser, and see the outputs rotated by the root of the curvature.
    - `draws`: so many random subsets for each estimate, of a partition drawn anew: unbiased, at the
      price of those alone. Two at least tell the spread (`info.error`). Default `None`: all
      subsets, in the order of the data.
    """

    size: int = eqx.field(static=True)
    outputs: Literal["joint", "each", "one"] = eqx.field(static=True, default="joint")
    draws_each: int | None = eqx.field(static=True, default=None)

    def __init__(
        self,
        size: int,
        outputs: Literal["joint", "each", "one"] = "joint",
        draws: int | None = None,
    ) -> None:
        require_count("Subsets", "size", size)
        require_choice("Subsets", "outputs", outputs, ("joint", "each", "one"))
        if draws is not None:
            require_count("Subsets", "draws", draws)
        if outputs == "one" and draws is None:
            raise ValueError("Subsets: outputs='one' is a random choice: expected 'draws', too.")
        self.size, self.outputs, self.draws_each = size, outputs, draws

    @property
    def random(self) -> bool:
        """See `Bound.random`."""
        return self.draws_each is not None

    def draws(self, examples: int, outputs: int, key: Array | None) -> PyTree:
        """See `Bound.draws`: subsets, their number, and an output for each."""
        count = -(-examples // self.size)
        order = jnp.arange(examples)
        if self.draws_each is not None:
            if key is None:
                raise ValueError("Subsets: random draws need a key: pass `key`.")
            shuffle, choose, pick = jax.random.split(key, 3)
            order = jax.random.permutation(shuffle, order)
        filled = jnp.pad(order, (0, count * self.size - examples), constant_values=-1)
        subsets = filled.reshape(count, self.size)
        if self.draws_each is not None:
            if self.draws_each > count:
                raise ValueError(
                    f"Subsets: 'draws': expected at most {count} of {examples} examples by "
                    f"{self.size}, received {self.draws_each}."
                )
            subsets = subsets[jax.random.permutation(choose, count)[: self.draws_each]]
            chosen = jax.random.randint(pick, (self.draws_each,), 0, outputs)
        else:
            chosen = jnp.zeros(count, jnp.int32)
        return subsets, chosen

    def log_det(self, network: Linearised, draw: PyTree) -> Scalar:
        """See `Bound.log_det`."""
        subset, output = draw
        count = -(-network.examples // self.size)
        if self.outputs == "joint":
            return count * _log_det(_kernel(network.rows(subset)))
        if self.outputs == "one":
            rows = network.rows(subset, output)
            return count * network.outputs * _log_det(_kernel(rows))
        apart = [jnp.moveaxis(leaf, 1, 0)[:, :, None] for leaf in network.rows(subset)]
        return count * jnp.sum(jax.vmap(lambda rows: _log_det(_kernel(rows)))(apart))


class BlockDiagonal(_AllOfTheData):
    """The Gauss-Newton matrix without what is between the leaves of `params`."""

    def log_det(self, network: Linearised, draw: PyTree) -> Scalar:
        """See `Bound.log_det`."""
        return sum((_log_det(_gram(_flat([leaf]))) for leaf in network.rows(draw)), jnp.zeros(()))


class KFAC(_AllOfTheData):
    """Two Kronecker factors for each matrix of weights; the whole block of a vector.

    The block of a leaf of shape `(..., inputs, units)`, leading axes joined to the inputs, is
    replaced by `L ⊗ R / trace`, with `L` and `R` its partial traces: the product with the right
    trace and marginals. Where the inputs, or the derivatives of the units, of all examples have
    one length these are the factors of K-FAC (Martens & Grosse 2015). An approximation of
    `BlockDiagonal`, in general no bound of it.
    """

    def log_det(self, network: Linearised, draw: PyTree) -> Scalar:
        """See `Bound.log_det`."""
        return sum((self._leaf(leaf) for leaf in network.rows(draw)), jnp.zeros(()))

    def _leaf(self, leaf: Array) -> Scalar:
        if leaf.ndim < 4:
            return _log_det(_gram(_flat([leaf])))
        rows = leaf.reshape(leaf.shape[0] * leaf.shape[1], -1, leaf.shape[-1])
        left = jnp.einsum("rio,rjo->ij", rows, rows)
        right = jnp.einsum("rio,rip->op", rows, rows)
        trace = jnp.trace(right)
        # Without any derivative both factors are zero, and the log determinant too.
        left = left / (trace + jnp.finfo(trace.dtype).tiny)
        values = jnp.outer(jnp.linalg.eigvalsh(left), jnp.linalg.eigvalsh(right))
        return jnp.sum(jnp.log1p(values))


class Diagonal(_AllOfTheData):
    """The diagonal of the Gauss-Newton matrix: the cheapest and loosest over the weights."""

    def log_det(self, network: Linearised, draw: PyTree) -> Scalar:
        """See `Bound.log_det`."""
        squares = [jnp.sum(leaf**2, axis=(0, 1)) for leaf in network.rows(draw)]
        return sum((jnp.sum(jnp.log1p(square)) for square in squares), jnp.zeros(()))


def _flat(leaves: list[Array]) -> Float[Array, "rows weights"]:
    count = leaves[0].shape[0] * leaves[0].shape[1]
    return jnp.concatenate([leaf.reshape(count, -1) for leaf in leaves], axis=1)


def _gram(rows: Float[Array, "rows weights"]) -> Float[Array, "weights weights"]:
    return rows.T @ rows


def _kernel(leaves: list[Array]) -> Float[Array, "rows rows"]:
    count = leaves[0].shape[0] * leaves[0].shape[1]
    flat = [leaf.reshape(count, -1) for leaf in leaves]
    return sum((rows @ rows.T for rows in flat), jnp.zeros((), flat[0].dtype))


def _log_det(matrix: Float[Array, "n n"]) -> Scalar:
    """`log det(I + matrix)`, of the factor of `I + matrix`, which never is singular."""
    factor = jnp.linalg.cholesky(matrix + jnp.eye(matrix.shape[0], dtype=matrix.dtype))
    return 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
