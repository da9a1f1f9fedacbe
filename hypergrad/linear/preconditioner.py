"""Preconditioners: cheap approximate inverses, built from the operator's products alone."""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from hypergrad.expected import require_count
from hypergrad.linear.operator import LinearOperator
from hypergrad.linear.random import random_like


class Preconditioner(eqx.Module):
    """A recipe for an approximate inverse `P⁻¹ ≈ A⁻¹`, symmetric positive definite."""

    @property
    def building(self) -> int:
        """Products that building it takes, as far as known beforehand; here none."""
        return 0

    @abstractmethod
    def build(
        self, operator: LinearOperator, like: PyTree
    ) -> tuple["BuiltPreconditioner", Int[Array, ""]]:
        """Build it for `operator`.

        **Arguments:**

        - `operator`: the map `A`, symmetric.
        - `like`: a vector of its space; only shapes and dtypes matter.

        **Returns:**

        The approximate inverse, and the products spent on it.
        """


class BuiltPreconditioner(Preconditioner):
    """An approximate inverse that is ready: a pytree of arrays, kept and passed on as such.

    It is also a recipe, the one that costs nothing: building gives itself. So a solver takes
    either, and one built at the last outer step serves at the next, where the operator has moved a
    little.
    """

    @abstractmethod
    def __call__(self, v: PyTree) -> PyTree:
        """`P⁻¹ v`."""

    def build(
        self, operator: LinearOperator, like: PyTree
    ) -> tuple["BuiltPreconditioner", Int[Array, ""]]:
        """Itself, at no product."""
        return self, jnp.zeros((), jnp.int32)


class Diagonal(BuiltPreconditioner):
    """`P⁻¹ v = v / diagonal`.

    **Arguments:**

    - `diagonal`: a pytree like the vectors, positive entries.
    """

    diagonal: PyTree

    def __call__(self, v: PyTree) -> PyTree:
        """Divide by the diagonal."""
        return jax.tree.map(lambda a, d: (a / d).astype(a.dtype), v, self.diagonal)


class Jacobi(Preconditioner):
    """The operator's diagonal, estimated from products with random signs.

    Bekas, Kokiopoulou & Saad, "An estimator for the diagonal of a matrix" (2007): with entries of
    `z` equal to ±1, `z ⊙ A z` is the diagonal plus noise of mean zero. Where the noise, known from
    the spread over the probes, is larger than the estimate, the entry is set by the noise: it
    measures the row's length, and a scaling by row length is safe where one by a small random
    number is not.

    **Arguments:**

    - `probes`: number of products, taken together in one batch. Default 10.
    - `key`: random key of the signs; a fixed one by default.
    """

    probes: int = eqx.field(static=True, default=10)
    key: Array | None = None

    def __check_init__(self) -> None:
        # Two, for the spread tells the noise.
        require_count("Jacobi", "probes", self.probes, 2)

    @property
    def building(self) -> int:
        """See `Preconditioner.building`."""
        return self.probes

    def build(
        self, operator: LinearOperator, like: PyTree
    ) -> tuple[BuiltPreconditioner, Int[Array, ""]]:
        """Estimate the diagonal."""
        key = jax.random.key(0) if self.key is None else self.key
        signs = random_like(jax.random.rademacher, key, like, self.probes)
        images = jax.vmap(operator.mv)(signs)
        products = jax.tree.map(lambda z, a: z * a, signs, images)
        tops = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(products)]
        top = jnp.max(jnp.stack(tops)) if tops else jnp.ones(())

        def entry(samples: Array) -> Array:
            mean = jnp.mean(samples, axis=0)
            noise = jnp.var(samples, axis=0, ddof=1) / self.probes
            tiny = jnp.finfo(samples.dtype).eps * top.astype(samples.dtype)
            return jnp.maximum(jnp.sqrt(mean**2 + noise), jnp.where(tiny > 0, tiny, 1))

        diagonal = jax.tree.map(entry, products)
        return Diagonal(diagonal), jnp.asarray(self.probes, jnp.int32)
