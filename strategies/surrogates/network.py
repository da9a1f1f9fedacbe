"""Small networks in NumPy: several at once, with derivatives by weights and by inputs.

A searcher compiles nothing and takes no memory on an accelerator; networks of a few thousand
weights on a few hundred points are small matrix products.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Adam's decay rates and guard (Kingma & Ba 2015, their defaults).
_FIRST, _SECOND, _GUARD = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Network:
    """Layers of tanh units and a linear output. The weights of `m` networks are a matrix `(m, p)`.

    - `sizes`: inputs, units of each hidden layer, and 1.
    """

    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of weights."""
        return sum((a + 1) * b for a, b in zip(self.sizes[:-1], self.sizes[1:], strict=True))

    def begin(self, rng: np.random.Generator, members: int = 1) -> Array:
        """Random weights `(members, count)`: normal, by the width of the layer below."""
        parts = []
        for a, b in zip(self.sizes[:-1], self.sizes[1:], strict=True):
            parts.append(rng.standard_normal((members, a * b)) / np.sqrt(a))
            parts.append(0.1 * rng.standard_normal((members, b)))
        return np.concatenate(parts, axis=1)

    def _layers(self, w: Array) -> list[tuple[Array, Array]]:
        """Matrices `(m, a, b)` and shifts `(m, 1, b)` of each layer."""
        found, start = [], 0
        for a, b in zip(self.sizes[:-1], self.sizes[1:], strict=True):
            matrix = w[:, start : start + a * b].reshape(-1, a, b)
            start += a * b
            found.append((matrix, w[:, None, start : start + b]))
            start += b
        return found

    def _forward(self, w: Array, x: Array) -> tuple[list[Array], Array]:
        """What enters each layer, `(m, n, a)`, and the output `(m, n)`."""
        layers, entering = self._layers(w), []
        at = np.broadcast_to(x, (len(w), *x.shape[-2:]))
        for i, (matrix, shift) in enumerate(layers):
            entering.append(at)
            at = at @ matrix + shift
            if i < len(layers) - 1:
                at = np.tanh(at)
        return entering, at[..., 0]

    def values(self, w: Array, x: Array) -> Array:
        """Outputs `(m, n)` at points `(n, inputs)`, or at `(m, n, inputs)`, others for each."""
        return self._forward(w, x)[1]

    def _deltas(self, w: Array, entering: list[Array], upstream: Array) -> list[Array]:
        """Derivatives by what leaves each layer before its tanh, `(m, n, b)`, the last one last."""
        layers, found = self._layers(w), [upstream[..., None]]
        for i in range(len(layers) - 1, 0, -1):
            below = found[0] @ layers[i][0].transpose(0, 2, 1)
            found.insert(0, below * (1.0 - entering[i] ** 2))
        return found

    def pulled_back(self, w: Array, x: Array, upstream: Callable[[Array], Array]) -> Array:
        """Derivative by the weights `(m, p)` of what has the derivative `upstream(outputs)`."""
        entering, out = self._forward(w, x)
        parts = []
        for at, delta in zip(entering, self._deltas(w, entering, upstream(out)), strict=True):
            parts.append((at.transpose(0, 2, 1) @ delta).reshape(len(w), -1))
            parts.append(delta.sum(axis=1))
        return np.concatenate(parts, axis=1)

    def by_weights(self, w: Array, x: Array) -> Array:
        """Derivatives `(n, p)` of one network, weights `(p,)`, by its weights at each point."""
        entering, out = self._forward(w[None], x)
        parts = []
        for at, delta in zip(
            entering, self._deltas(w[None], entering, np.ones_like(out)), strict=True
        ):
            parts.append((at[0, :, :, None] * delta[0, :, None, :]).reshape(len(x), -1))
            parts.append(delta[0])
        return np.concatenate(parts, axis=1)

    def by_inputs(self, w: Array, x: Array) -> tuple[Array, Array]:
        """Outputs `(m, n)` and their derivatives by the inputs `(m, n, inputs)`."""
        entering, out = self._forward(w, x)
        first = self._deltas(w, entering, np.ones_like(out))[0]
        return out, first @ self._layers(w)[0][0].transpose(0, 2, 1)


def adam(
    w: Array,
    slope: Callable[[Array, int], Array],
    steps: int,
    rate: float,
) -> Array:
    """Weights after Adam with a rate that fades to zero as a cosine.

    **Arguments:**

    - `w`: to begin with, of any shape.
    - `slope`: from weights and the number of the step to the derivative.
    """
    first, second = np.zeros_like(w), np.zeros_like(w)
    for step in range(steps):
        g = slope(w, step)
        first = _FIRST * first + (1 - _FIRST) * g
        second = _SECOND * second + (1 - _SECOND) * g**2
        faded = 0.5 * rate * (1 + np.cos(np.pi * step / steps))
        mean = first / (1 - _FIRST ** (step + 1))
        size = np.sqrt(second / (1 - _SECOND ** (step + 1)))
        w = w - faded * mean / (size + _GUARD)
    return w


__all__ = ["Network", "adam"]
