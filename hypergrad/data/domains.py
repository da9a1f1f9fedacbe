"""Training data in domains: the inner loss with a weight for each, and its mini-batches."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Scalar

from hypergrad.outer.batches import Batches, Sampler
from hypergrad.problem import BilevelProblem


class MixedDomains(eqx.Module):
    """`Σ_d p_d f_d(w)` on a batch of equally many examples of each domain, domain after domain.

    **Arguments:** `problem`, its `hparams` held fixed, the number of `domains`, and the `floor`.
    """

    problem: BilevelProblem
    hparams: PyTree
    domains: int = eqx.field(static=True)
    floor: float = eqx.field(static=True)

    def weights(self, logits: Float[Array, "domains"]) -> Float[Array, "domains"]:
        """The point of the simplex."""
        return (1 - self.floor) * jax.nn.softmax(logits) + self.floor / self.domains

    def __call__(
        self, params: PyTree, logits: Array, batch: PyTree, key: Array | None = None
    ) -> Scalar:
        """The inner loss."""
        parts = jax.tree.map(lambda a: a.reshape(self.domains, -1, *a.shape[1:]), batch)
        keys = None if key is None else jax.random.split(key, self.domains)
        losses = jax.vmap(
            lambda part, k: self.problem.inner_loss(params, self.hparams, part, k)[0]
        )(parts, keys)
        return self.weights(logits) @ losses


class TargetLoss(eqx.Module):
    """The problem's outer loss, which the weights do not enter."""

    mixed: MixedDomains

    def __call__(self, params: PyTree, _: Array, batch: PyTree, key: Array | None = None) -> Scalar:
        """The outer loss."""
        return self.mixed.problem.outer_loss(params, self.mixed.hparams, batch, key)[0]


class DomainBatches(Sampler):
    """The same number of examples of each domain, independently and with replacement.

    **Arguments:**

    - `sizes`: examples of each domain, in the order in which the data hold them.
    - `size`: examples of one domain in a mini-batch.
    - `outer_size`: target examples in a mini-batch; `None` takes all.
    - `fits`: mini-batches of an outer step.
    """

    sizes: tuple[int, ...] = eqx.field(static=True)
    size: int = eqx.field(static=True)
    outer_size: int | None = eqx.field(static=True)
    fits: int = eqx.field(static=True)

    def __call__(
        self, inner_data: PyTree, outer_data: PyTree, step: Int[Array, ""], key: Array
    ) -> Batches:
        """See `Sampler`."""
        inner_key, outer_key = jax.random.split(jax.random.fold_in(key, step))
        first = np.cumsum((0, *self.sizes))[:-1]
        keys = jax.random.split(inner_key, len(self.sizes))
        draws = [
            start + jax.random.randint(k, (self.fits, self.size), 0, count)
            for start, count, k in zip(first, self.sizes, keys, strict=True)
        ]
        rows = jnp.concatenate(draws, axis=1)
        outer_rows = None
        if self.outer_size is not None:
            total = jax.tree.leaves(outer_data)[0].shape[0]
            outer_rows = jax.random.randint(outer_key, (self.outer_size,), 0, total)
        return Batches(
            inner_data,
            outer_data,
            inner_rows=rows,
            linear_rows=rows[-1],
            outer_rows=outer_rows,
            inner_count=0,
            outer_count=0 if self.outer_size is not None else 1,
        )


def domain_sizes(data: dict[str, PyTree]) -> tuple[int, ...]:
    """How many examples each domain has, if they are alike."""
    sizes, shapes = [], {}
    for name, part in data.items():
        leaves = [leaf for leaf in jax.tree.leaves(part) if eqx.is_array(leaf)]
        lengths = {leaf.shape[:1] for leaf in leaves}
        if len(lengths) != 1 or () in lengths:
            raise ValueError(
                f"Domain {name!r}: expected arrays with one leading axis over the examples, "
                f"received shapes {[leaf.shape for leaf in leaves]}."
            )
        sizes.append(leaves[0].shape[0])
        shapes[name] = jax.tree.map(lambda leaf: (leaf.shape[1:], str(leaf.dtype)), part)
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise ValueError(
                "domains: expected examples of one shape, received "
                f"{first!r}: {shapes[first]}, {name!r}: {shape}."
            )
    if min(sizes) == 0:
        raise ValueError(f"domains: expected examples in each, received sizes {sizes}.")
    return tuple(sizes)
