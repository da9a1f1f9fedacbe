"""What a run found."""

import csv
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hypergrad.outer.base import OuterState
from hypergrad.outer.report import Row


class Point(eqx.Module):
    """Hyperparameters, the inner parameters found for them, their outer loss, and the step."""

    step: Array
    value: Array
    hparams: PyTree
    params: PyTree

    def better_of(self, step: int, value: float, state: OuterState) -> "Point":
        """This point, or where the algorithm is now if the loss is smaller there."""
        if not value < float(self.value):
            return self
        number, loss = jnp.asarray(step, jnp.int32), jnp.asarray(value, self.value.dtype)
        return Point(number, loss, state.visited, state.params)


@dataclass(frozen=True)
class Result:
    """What a run found.

    - `hparams`, `params`: the last hyperparameters visited, and the inner parameters there.
    - `value`: their outer loss.
    - `status`: "steps" (all taken), "stationary", "patience", "callback", "accuracy_limit" (no
      decrease can be certified with the accuracy that can be had), "infeasible" (`DualAscent`: no
      point near meets the constraints), or "breakdown" (a number was not finite: nothing moved in
      that step).
    - `best`: the point of smallest outer loss among those evaluated.
    - `holdout_best`: the point of smallest held-out loss; its `value` is that loss. `None` without
      held-out data.
    - `history`: one row per outer step: `step`, `seconds`, the fields of `OuterInfo`,
      `validation` (outer loss on all outer data) and `holdout`, NaN at steps without evaluation.
    - `state`: the algorithm's state after the last step.
    """

    hparams: PyTree
    params: PyTree
    value: float
    status: str
    best: Point
    holdout_best: Point | None
    history: list[Row]
    state: OuterState

    def write_csv(self, path: str | Path) -> None:
        """Write the history as a CSV file with a header line."""
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.history[0]) if self.history else [])
            writer.writeheader()
            writer.writerows(self.history)
