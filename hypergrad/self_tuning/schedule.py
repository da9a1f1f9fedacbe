"""The hyperparameter schedule that a self-tuning run leaves behind: data, replay and plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from numpy.typing import ArrayLike

from hypergrad.expected import received, require_numbers


class Schedule(eqx.Module):
    """Values of hyperparameters over the steps of a run.

    **Arguments:**

    - `steps`: increasing step numbers, shape `(T,)`.
    - `values`: for each name an array of shape `(T, *shape)`.

    Raises `ValueError` for steps that do not increase, or values of another length.
    """

    steps: np.ndarray
    values: dict[str, np.ndarray]

    def __init__(self, steps: ArrayLike, values: Mapping[str, ArrayLike]):
        if not isinstance(values, Mapping):
            raise ValueError(
                "Schedule: values: expected a dict from names to arrays, received "
                f"{received(values)}."
            )
        require_numbers("Schedule", "steps", steps)
        self.steps = np.asarray(steps)
        for name, value in values.items():
            require_numbers("Schedule", f"{name!r}", value)
        self.values = {name: np.asarray(value) for name, value in values.items()}
        if self.steps.ndim != 1 or len(self.steps) == 0 or np.any(np.diff(self.steps) <= 0):
            raise ValueError(
                "Schedule: `steps`: expected an increasing vector, received shape "
                f"{self.steps.shape}."
            )
        for name, value in self.values.items():
            if value.ndim == 0 or len(value) != len(self.steps):
                raise ValueError(
                    f"Schedule: {name!r} has shape {value.shape}; "
                    f"expected a leading axis of {len(self.steps)} steps."
                )

    @property
    def final(self) -> dict[str, np.ndarray]:
        """The last value of each hyperparameter."""
        return {name: value[-1] for name, value in self.values.items()}

    def at(self, step: float) -> dict[str, np.ndarray]:
        """The values at `step`, interpolated linearly, constant beyond the ends: for a replay."""
        position = np.interp(step, self.steps, np.arange(len(self.steps)))
        low = int(np.floor(position))
        high = min(low + 1, len(self.steps) - 1)
        part = position - low
        return {n: (1 - part) * v[low] + part * v[high] for n, v in self.values.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        return {
            "steps": self.steps.tolist(),
            "values": {name: value.tolist() for name, value in self.values.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Schedule":
        """The inverse of `to_dict`."""
        return cls(data["steps"], data["values"])

    def plot(self, path: str | Path, *, names: Sequence[str] | None = None) -> None:
        """Draw one panel for each hyperparameter (all, or `names`) into an image file.

        Raises `ImportError` without matplotlib, `ValueError` for an unknown name.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                'Plots need matplotlib: pip install "hypergrad-engine[experiments]"'
            ) from error
        names = list(self.values) if names is None else list(names)
        unknown = sorted(set(names) - set(self.values))
        if unknown:
            raise ValueError(f"Schedule: unknown {unknown}, expected among {sorted(self.values)}.")
        figure = Figure(figsize=(7, 1.6 * len(names) + 0.6), layout="constrained")
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for panel, name in zip(panels, names, strict=True):
            value = self.values[name].reshape(len(self.steps), -1)
            for index in range(value.shape[1]):
                label = f"{name}[{index}]" if value.shape[1] > 1 else None
                panel.plot(self.steps, value[:, index], label=label)
            panel.set_ylabel(name)
            if value.shape[1] > 1:
                panel.legend(fontsize="small")
        panels[-1].set_xlabel("training step")
        figure.savefig(path, dpi=120)
