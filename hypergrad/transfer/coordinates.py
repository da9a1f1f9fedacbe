"""Does a training move every layer alike at every width?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from hypergrad.expected import received, require, require_count, require_function


class Probe(NamedTuple):
    """A model at one width, as `coordinate_check` trains it.

    - `params`: where it starts.
    - `loss`: `loss(params) -> scalar`, on one fixed batch.
    - `activations`: `activations(params) -> {layer: array}`, on the same batch.
    - `optimizer`: as `Parametrization.optimizer` gives it.
    """

    params: PyTree
    loss: Callable[[PyTree], Array]
    activations: Callable[[PyTree], dict[str, Array]]
    optimizer: optax.GradientTransformation


@dataclass(frozen=True)
class CoordinateCheck:
    """Sizes of activations by layer, step and width.

    - `widths`: shape `(w,)`.
    - `sizes`: mean absolute activation of each layer, in the model's order, shape
      `(steps + 1, w)`, mean over seeds; the first row is before training.
    """

    widths: np.ndarray
    sizes: dict[str, np.ndarray]

    @property
    def slopes(self) -> dict[str, float]:
        """Power of the width with which each layer's activations grow, after the last step.

        Near zero is right: above it a wide model blows up, below it a layer stops to matter.
        """
        return {
            name: float(np.polyfit(np.log(self.widths), np.log(size[-1]), 1)[0])
            for name, size in self.sizes.items()
        }

    @property
    def worst(self) -> float:
        """The largest absolute slope."""
        return max(abs(slope) for slope in self.slopes.values())

    def plot(self) -> Any:
        """A matplotlib figure: size against width, one panel a layer, one line a step."""
        from matplotlib.figure import Figure

        count = len(self.sizes)
        figure = Figure(figsize=(3.0 * count + 0.6, 3.0), layout="constrained")
        panels = figure.subplots(1, count, squeeze=False)[0]
        for axes, (name, size) in zip(panels, self.sizes.items(), strict=True):
            for step, line in enumerate(size):
                axes.loglog(self.widths, line, marker="o", label=f"after {step}")
            axes.set_title(f"{name}, slope {self.slopes[name]:+.2f}")
            axes.set_xlabel("width")
        panels[0].set_ylabel("mean absolute activation")
        panels[-1].legend(fontsize="small")
        return figure


def coordinate_check(
    make: Callable[[int, Array], Probe],
    widths: Sequence[int],
    *,
    steps: int = 3,
    seeds: int = 3,
) -> CoordinateCheck:
    """Train a few steps at several widths, and see which layers grow with the width.

    Look from the second step on if the readout begins at zero: its first step moves nothing below.

    **Arguments:**

    - `make`: `make(width, key) -> Probe`.
    - `widths`: at least two.
    - `steps`: of the optimizer.
    - `seeds`: draws that are averaged.

    **Raises:** `ValueError` for fewer than two widths, and for a layer whose activations are zero
    or not finite.
    """
    require_function("coordinate_check", "make", make)
    require_count("coordinate_check", "steps", steps)
    require_count("coordinate_check", "seeds", seeds)
    if not isinstance(widths, Sequence | np.ndarray) or isinstance(widths, str | bytes):
        raise ValueError(
            f"coordinate_check: widths: expected integers such as (64, 256), received "
            f"{received(widths)}."
        )
    for width in widths:
        require_count("coordinate_check", "widths", width)
    if len(set(widths)) < 2:
        raise ValueError(f"'widths': expected at least two, received {list(widths)}")
    sizes: dict[str, np.ndarray] = {}
    for at, width in enumerate(widths):
        for seed in range(seeds):
            probe = make(width, jax.random.key(seed))
            require("coordinate_check", "make", probe, Probe, "Probe(params, loss, ...)")
            for step, found in enumerate(_trained(probe, steps)):
                for name, one in found.items():
                    empty = np.zeros((steps + 1, len(widths)))
                    sizes.setdefault(name, empty)[step, at] += one / seeds
    for name, size in sizes.items():
        if not (np.isfinite(size[-1]).all() and (size[-1] > 0).all()):
            raise ValueError(
                f"{name!r}: expected finite activations that are not zero, received sizes "
                f"{size[-1].tolist()} at widths {list(widths)}"
            )
    return CoordinateCheck(np.asarray(widths, float), sizes)


def _trained(probe: Probe, steps: int) -> list[dict[str, float]]:
    optimizer = optax.with_extra_args_support(probe.optimizer)

    # In the model's order, which a dict loses on the way through a compiled program.
    names: list[str] = []

    # Sizes and step in one program: widths and seeds have one each, to be compiled.
    @jax.jit
    def step(params: PyTree, state: PyTree) -> tuple[PyTree, PyTree, tuple[Array, ...]]:
        activations = probe.activations(params)
        names[:] = activations
        sizes = tuple(jnp.mean(jnp.abs(a)) for a in activations.values())
        value, gradient = jax.value_and_grad(probe.loss)(params)
        updates, state = optimizer.update(gradient, state, params, value=value)
        return optax.apply_updates(params, updates), state, sizes

    params, state = probe.params, probe.optimizer.init(probe.params)
    found = []
    for _ in range(steps + 1):
        params, state, sizes = step(params, state)
        found.append(dict(zip(names, map(float, sizes), strict=True)))
    return found
