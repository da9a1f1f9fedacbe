"""Mini-batches for problems whose two data sets describe the same examples."""

import equinox as eqx
import jax
from jaxtyping import Array, Int, PyTree

from hypergrad.expected import require_count
from hypergrad.outer.batches import Batches, Sampler, examples


class PairedBatches(Sampler):
    """The same random rows of the inner and of the outer data in every part of a step.

    For games and constraints over one data set, where both players should see the same examples,
    and for tasks (`hypergrad.tasks`), row `i` of the inner data being the training, of the outer
    data the validation examples of task `i`.

    **Arguments:**

    - `size`: rows of a batch, drawn without replacement.
    - `evaluate`: whether the driver may evaluate the outer loss on all of the outer data between
      steps. `False` where the params belong to the rows of their step (tasks): the value of the
      step stands for it. Default `True`.

    **Raises:** `ValueError` if leaves disagree on their first axis, or hold fewer rows than `size`.
    """

    size: int = eqx.field(static=True)
    evaluate: bool = eqx.field(static=True, default=True)

    def __check_init__(self) -> None:
        require_count("PairedBatches", "size", self.size)

    def __call__(
        self, inner_data: PyTree, outer_data: PyTree, step: Int[Array, ""], key: Array
    ) -> Batches:
        """See `Sampler`."""
        total = examples(inner_data, self.size, "inner_data", False)
        other = examples(outer_data, self.size, "outer_data", False)
        if total != other:
            raise ValueError(
                "PairedBatches: expected inner_data and outer_data with as many rows, received "
                f"{total} and {other}."
            )
        draw = jax.random.fold_in(key, step)
        rows = jax.random.choice(draw, total, (self.size,), replace=False)
        return Batches(
            inner_data,
            outer_data,
            inner_rows=rows[None],
            linear_rows=rows,
            outer_rows=rows,
            inner_count=0,
            outer_count=0,
        )

    def evaluation_data(self, outer_data: PyTree) -> PyTree | None:
        """See `Sampler.evaluation_data`."""
        return outer_data if self.evaluate else None
