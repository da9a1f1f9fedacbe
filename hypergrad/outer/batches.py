"""Which examples enter which part of an outer step.

A sampler is a pure function of the data, the step number and a key, so that a resumed run draws
what the uninterrupted one draws, and a compiled step draws inside the program.
"""

from abc import abstractmethod
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from hypergrad.expected import require_choice, require_count
from hypergrad.outer.base import Batches


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
