"""What was learned: numbers over steps and groups, to be printed, saved and trained with."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int

from hypergrad.schedule.scheduled import ALL, GroupOf, Make, scheduled

# Points in time that `print` shows.
_SHOWN = 9


class Schedule(eqx.Module):
    """One setting over the steps, as an optax schedule: called with a step, and printed.

    The last value stays after the last step.
    """

    name: str = eqx.field(static=True)
    values: Float[Array, " steps"]

    def __call__(self, count: Int[ArrayLike, ""]) -> Array:
        """The value at a step."""
        return self.values[jnp.clip(count, 0, len(self.values) - 1)]

    def __str__(self) -> str:
        return _printed({self.name: np.asarray(self.values)})


class LearnedSchedules(eqx.Module):
    """Settings of a training over its steps, for each group of parameters.

    - `values`: for each setting an array of shape `(steps, groups)`.
    - `groups`: their names.
    - `value`: the outer loss with them (held-out, if there are held-out data).
    - `losses`: the outer loss at each metagradient step; the first is that of the start.

    `print` shows them; `schedule("learning_rate")` is an optax schedule; `optimizer(...)` the
    optimizer that they were learned for; `to_dict` and `from_dict` go through JSON.
    """

    values: dict[str, np.ndarray]
    groups: tuple[str, ...]
    value: float = float("nan")
    losses: np.ndarray = eqx.field(default_factory=lambda: np.zeros(0))

    @property
    def steps(self) -> int:
        """Number of steps of a training."""
        return len(next(iter(self.values.values())))

    def schedule(self, name: str, group: str | None = None) -> Schedule:
        """One setting as an optax schedule.

        **Raises:** `ValueError` for an unknown setting or group, and where there are several
        groups and none is named.
        """
        if name not in self.values:
            raise ValueError(f"schedule: expected one of {list(self.values)}, received {name!r}.")
        if group is None and len(self.groups) == 1:
            group = self.groups[0]
        if group not in self.groups:
            raise ValueError(f"group: expected one of {list(self.groups)}, received {group!r}.")
        line = jnp.asarray(self.values[name][:, self.groups.index(group)])
        return Schedule(self._label(name, group), line)

    def optimizer(
        self, optimizer: Make, group_of: GroupOf | None = None
    ) -> optax.GradientTransformation:
        """The optimizer for a training with these schedules.

        **Arguments:** those that `learn_schedules` was given.
        """
        values = {name: jnp.asarray(value) for name, value in self.values.items()}
        return scheduled(optimizer, values, self.groups, group_of)

    def stretched(self, steps: int) -> "LearnedSchedules":
        """The same shapes over another number of steps."""
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps: expected a positive integer, received {steps!r}.")
        old, new = np.linspace(0, 1, self.steps), np.linspace(0, 1, steps)
        values = {
            name: np.stack([np.interp(new, old, column) for column in value.T], axis=1)
            for name, value in self.values.items()
        }
        return LearnedSchedules(values, self.groups)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        return {
            "values": {name: value.tolist() for name, value in self.values.items()},
            "groups": list(self.groups),
            "value": self.value,
            "losses": self.losses.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LearnedSchedules":
        """The inverse of `to_dict`."""
        values = {name: np.asarray(value) for name, value in data["values"].items()}
        return cls(values, tuple(data["groups"]), data["value"], np.asarray(data["losses"]))

    def __str__(self) -> str:
        return _printed(
            {
                self._label(name, group): value[:, g]
                for name, value in self.values.items()
                for g, group in enumerate(self.groups)
            }
        )

    def _label(self, name: str, group: str) -> str:
        return name if self.groups == (ALL,) else f"{name} [{group}]"


def _printed(lines: Mapping[str, np.ndarray]) -> str:
    """A table with a row for each setting, and columns for some of the steps."""
    steps = len(next(iter(lines.values())))
    shown = np.unique(np.linspace(0, steps - 1, _SHOWN).round().astype(int))
    width = max(len(label) for label in [*lines, "step"])
    rows = [f"{'step':<{width}} " + " ".join(f"{t:>9}" for t in shown)]
    for label, line in lines.items():
        rows.append(f"{label:<{width}} " + " ".join(f"{v:>9.3g}" for v in line[shown]))
    return "\n".join(rows)


def over_steps(start: float | Callable | Array, name: str, steps: int, groups: int) -> np.ndarray:
    """A number, an optax schedule or an array as values of shape `(steps, groups)`.

    **Raises:** `ValueError` for an array of another length or number of groups.
    """
    if callable(start):
        line = np.array([float(start(t)) for t in range(steps)])
    else:
        line = np.asarray(start, float)
    if line.ndim == 0:
        line = np.full(steps, float(line))
    if line.ndim == 1:
        line = line[:, None]
    if line.ndim != 2 or line.shape[0] != steps or line.shape[1] not in (1, groups):
        raise ValueError(
            f"start: {name!r}: expected a number, an optax schedule or an array of shape "
            f"({steps},) or ({steps}, {groups}) (steps, groups), received shape {line.shape}."
        )
    return np.broadcast_to(line, (steps, groups)).copy()
