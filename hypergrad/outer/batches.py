"""The data of an outer step: which examples enter which part of it.

A sampler is a pure function of the data, the step number and a key, so that a resumed run draws
what the uninterrupted one draws, and a compiled step draws inside the program.
"""

import math
from abc import abstractmethod
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from hypergrad.expected import require_choice, require_count
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem


class Batches(eqx.Module):
    """The data of one outer step, by the part of it that they enter.

    `Batches(inner_data, outer_data)` uses all of both everywhere. The samplers
    (`hypergrad.outer.Minibatches`) fill in the rows.

    **Arguments:**

    - `inner_data`: the training data, any pytree; its array leaves share their first axis if rows
      are given.
    - `outer_data`: the validation data, likewise.
    - `inner_rows`: row numbers, shape `(fits, size)`: one mini-batch for each inner fit of the
      step. `None`: all rows.
    - `linear_rows`: row numbers, shape `(size,)`, for the linear system and the mixed product.
    - `outer_rows`: row numbers, shape `(outer_size,)`, for the outer loss.
    - `inner_number`, `outer_number`: which block of a fixed partition of the data the (first) inner
      and the outer mini-batch are; methods with one memory slot per block need them.
    - `inner_count`, `outer_count`: how many blocks there are; 0 if the mini-batches are not blocks
      of a fixed partition.
    """

    inner_data: PyTree
    outer_data: PyTree
    inner_rows: Int[Array, "fits size"] | None = None
    linear_rows: Int[Array, " size"] | None = None
    outer_rows: Int[Array, " outer_size"] | None = None
    inner_number: Int[Array, ""] | int = 0
    outer_number: Int[Array, ""] | int = 0
    inner_count: int = eqx.field(static=True, default=1)
    outer_count: int = eqx.field(static=True, default=1)

    def inner(self, fit: Int[Array, ""] | int = 0) -> PyTree:
        """The batch of inner fit number `fit` of this step."""
        if self.inner_rows is None:
            return self.inner_data
        return _rows(self.inner_data, self.inner_rows[fit % self.inner_rows.shape[0]])

    @property
    def linear(self) -> PyTree:
        """The batch of the linear system and of the mixed product."""
        return _rows(self.inner_data, self.linear_rows)

    @property
    def outer(self) -> PyTree:
        """The batch of the outer loss."""
        return _rows(self.outer_data, self.outer_rows)

    @property
    def everything(self) -> "Batches":
        """All of both data in every part of the step."""
        return Batches(self.inner_data, self.outer_data)

    @property
    def passes(self) -> tuple[int, int]:
        """How many inner and outer mini-batches all of the data make, rounded up."""
        return (
            _batches(self.inner_data, self.linear_rows),
            _batches(self.outer_data, self.outer_rows),
        )

    def restrict(
        self, problem: BilevelProblem, params: PyTree, hparams: PyTree, key: Array | None
    ) -> RestrictedProblem:
        """The problem at a point, on the batches of the linear system and of the outer loss."""
        return RestrictedProblem(problem, params, hparams, self.linear, self.outer, key)


def _batches(data: PyTree, rows: Array | None) -> int:
    if rows is None:
        return 1
    total = next(x.shape[0] for x in jax.tree.leaves(data) if hasattr(x, "shape"))
    return math.ceil(total / rows.size)


def _rows(data: PyTree, rows: Array | None) -> PyTree:
    if rows is None:
        return data
    return jax.tree.map(lambda x: _take(x, rows) if hasattr(x, "shape") else x, data)


def _take(x: Array, rows: Array) -> Array:
    """`x[rows]`; on a mesh with explicit axes sharded as `x`, where the rows can be dealt out."""
    sharding = jax.typeof(x).sharding
    if not any(sharding.mesh.explicit_axes):
        return x[rows]
    first, *rest = sharding.spec
    axes = (first,) if isinstance(first, str) else first or ()
    devices = math.prod(sharding.mesh.shape[axis] for axis in axes)
    spec = jax.sharding.PartitionSpec(first if rows.size % devices == 0 else None, *rest)
    return x.at[rows].get(out_sharding=jax.sharding.NamedSharding(sharding.mesh, spec))


class Sampler(eqx.Module):
    """Chooses the mini-batches of a step."""

    @abstractmethod
    def __call__(
        self, inner_data: PyTree, outer_data: PyTree, step: Int[Array, ""], key: Array
    ) -> Batches:
        """The batches of outer step `step`.

        **Arguments:**

        - `inner_data`, `outer_data`: training and validation data, any pytrees.
        - `step`: number of the outer step; may be traced.
        - `key`: the same at every step.
        """

    def evaluation_data(self, outer_data: PyTree) -> PyTree | None:
        """The data on which the driver evaluates the outer loss between steps: all of them.

        `None` says that the value of the last step will do: it was on all of the data already, or
        the inner parameters belong to that step's data alone.
        """
        return outer_data


class FullBatch(Sampler):
    """All of the data in every part of every step."""

    def __call__(
        self, inner_data: PyTree, outer_data: PyTree, step: Int[Array, ""], key: Array
    ) -> Batches:
        """See `Sampler`."""
        return Batches(inner_data, outer_data)

    def evaluation_data(self, outer_data: PyTree) -> PyTree | None:
        """`None`: see `Sampler.evaluation_data`."""
        return None


class Minibatches(Sampler):
    """Mini-batches by named policies. Array leaves of the data share their first axis.

    The policies differ in what the training data are used for:

    | policy | inner fits of one outer step | linear system and mixed product |
    | --- | --- | --- |
    | "same" | one batch for all of them | that batch |
    | "fresh" | a new batch for each | the batch of the last fit |
    | "independent" | a new batch for each | one more new batch |

    The outer loss has a batch of its own, of the validation data, once per outer step.

    **Arguments:**

    - `size`: training examples per batch.
    - `outer_size`: validation examples per batch. Default: as `size`.
    - `policy`: see the table. Default "same".
    - `fits`: inner batches per outer step: `Alternating.fits`, `F2SA.inner_steps`, what the page of
      a stochastic method says. Default 1.
    - `blocks`: `False` draws examples independently with replacement. `True` draws whole blocks of
      a fixed partition, block `i` being examples `i, i + n/size, i + 2n/size, …`, so that methods
      with a memory know which one they have seen. Default `False`.

    **Raises:** `ValueError` if the data's leaves disagree on their first axis, hold fewer examples
    than a batch, or (with `blocks`) do not divide into batches.
    """

    size: int = eqx.field(static=True)
    outer_size: int | None = eqx.field(static=True, default=None)
    policy: Literal["same", "fresh", "independent"] = eqx.field(static=True, default="same")
    fits: int = eqx.field(static=True, default=1)
    blocks: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        require_choice("Minibatches", "policy", self.policy, ("same", "fresh", "independent"))
        for name in ("size", "outer_size", "fits"):
            value = getattr(self, name)
            if value is not None or name != "outer_size":
                require_count("Minibatches", name, value)

    def __call__(
        self, inner_data: PyTree, outer_data: PyTree, step: Int[Array, ""], key: Array
    ) -> Batches:
        """See `Sampler`."""
        outer_size = self.size if self.outer_size is None else self.outer_size
        inner_total = examples(inner_data, self.size, "inner_data", self.blocks)
        outer_total = examples(outer_data, outer_size, "outer_data", self.blocks)
        inner_key, outer_key = jax.random.split(jax.random.fold_in(key, step))
        draws = {"same": 1, "fresh": self.fits, "independent": self.fits + 1}[self.policy]
        rows, numbers = self._draw(inner_key, draws, inner_total, self.size)
        outer_rows, outer_numbers = self._draw(outer_key, 1, outer_total, outer_size)
        return Batches(
            inner_data,
            outer_data,
            inner_rows=rows[: self.fits],
            linear_rows=rows[-1],
            outer_rows=outer_rows[0],
            inner_number=numbers[-1],
            outer_number=outer_numbers[0],
            inner_count=inner_total // self.size if self.blocks else 0,
            outer_count=outer_total // outer_size if self.blocks else 0,
        )

    def _draw(self, key: Array, draws: int, total: int, size: int) -> tuple[Array, Array]:
        """Row numbers `(draws, size)` and block numbers `(draws,)`."""
        if not self.blocks:
            return jax.random.randint(key, (draws, size), 0, total), jnp.zeros(draws, jnp.int32)
        count = total // size
        numbers = jax.random.randint(key, (draws,), 0, count)
        return numbers[:, None] + count * jnp.arange(size), numbers


def examples(data: PyTree, size: int, name: str, blocks: bool) -> int:
    """How many rows the data have; refuses data that do not make a batch."""
    leaves = [x for x in jax.tree.leaves(data) if hasattr(x, "shape")]
    shapes = [jnp.shape(x) for x in leaves]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(
            f"Minibatches: {name}: expected leaves that share their first axis, received shapes "
            f"{shapes}."
        )
    total = shapes[0][0]
    if total < size:
        raise ValueError(f"Minibatches: {name} has {total} examples, fewer than a batch of {size}.")
    if blocks and total % size:
        raise ValueError(
            f"Minibatches: {name} has {total} examples, which do not divide into blocks of {size}."
        )
    return total
