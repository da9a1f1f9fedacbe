"""An optimizer whose step is a small network, to be learned as hyperparameters."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from hypergrad.expected import require_count, require_finite

#: Under the root of a mean square, so that its derivative is finite where all gradients were zero.
_FLOOR = 1e-30
#: Training times, in steps, at which the features of time change.
_TIMES = (10.0, 100.0)


class LearnedState(NamedTuple):
    """Running means of gradients, one for each decay, and of their squares."""

    steps: Int[Array, ""]
    means: PyTree
    squares: PyTree


class LearnedOptimizer(eqx.Module):
    """A network that maps what is known of each parameter to its step.

    `optimizer(weights)` is an optax transformation, so that a learned optimizer goes wherever one
    is asked for: into `hypergrad.unrolled` as `update=optimizer`, with the weights as
    hyperparameters; or, for models of several widths,
    `update=lambda w: rule.optimizer(optimizer(w))` with a rule of `hypergrad.transfer` for Adam.

    For each parameter the network sees its gradient and the running means of it, all relative to
    the root of the running mean of squares; that root and the parameter itself, relative to those
    of its array; and the time. It puts out `d` and `s`, and the step is

        −rate · exp(s) · (mean / root + d)

    with the mean of the decay nearest to 0.9. Nothing depends on the scale of the loss. Weights of
    `init` give `d = s = 0`: it begins as Adam, and learning can only be measured against that.
    Metz et al., "Practical Tradeoffs between Memory, Compute, and Performance in Learned
    Optimizers" (2022); Thérien et al., "μLO" (2024).

    - `rate`: size of the steps at the beginning.
    - `hidden`: units of the network's one hidden layer.
    - `decays`: of the running means, in (0, 1).
    - `square_decay`: of the running mean of squares.
    """

    rate: float = eqx.field(static=True)
    hidden: int = eqx.field(static=True)
    decays: tuple[float, ...] = eqx.field(static=True)
    square_decay: float = eqx.field(static=True)

    def __init__(
        self,
        rate: float = 1e-3,
        *,
        hidden: int = 8,
        decays: Sequence[float] = (0.5, 0.9, 0.99),
        square_decay: float = 0.99,
    ) -> None:
        require_finite("LearnedOptimizer", "rate", rate)
        require_count("LearnedOptimizer", "hidden", hidden)
        if not isinstance(decays, Sequence) or not decays:
            raise ValueError(f"LearnedOptimizer: decays: expected numbers, received {decays!r}.")
        for name, values in (("decays", decays), ("square_decay", [square_decay])):
            for value in values:
                require_finite("LearnedOptimizer", name, value)
                if not 0.0 < value < 1.0:
                    raise ValueError(
                        f"LearnedOptimizer: {name}: expected numbers in (0, 1), received {value!r}."
                    )
        self.rate, self.hidden = float(rate), int(hidden)
        self.decays, self.square_decay = tuple(map(float, decays)), float(square_decay)

    @property
    def features(self) -> int:
        """How many numbers the network sees of a parameter."""
        return len(self.decays) + 3 + len(_TIMES)

    def init(self, key: Array) -> dict[str, Array]:
        """Weights, with which it is Adam."""
        first = jax.random.normal(key, (self.features, self.hidden)) / math.sqrt(self.features)
        return {
            "first": first,
            "bias": jnp.zeros(self.hidden),
            "last": jnp.zeros((self.hidden, 2)),
            "shift": jnp.zeros(2),
        }

    def __call__(self, weights: dict[str, Array]) -> optax.GradientTransformation:
        """The transformation; its `update` needs `params`."""
        main = min(range(len(self.decays)), key=lambda i: abs(self.decays[i] - 0.9))

        def init(params: PyTree) -> LearnedState:
            zeros = lambda a: jnp.zeros((len(self.decays), *a.shape), a.dtype)  # noqa: E731
            means = jax.tree.map(zeros, params)
            squares = jax.tree.map(jnp.zeros_like, params)
            return LearnedState(jnp.zeros((), jnp.int32), means, squares)

        def update(
            grads: PyTree, state: LearnedState, params: PyTree | None = None, **_: Any
        ) -> tuple[PyTree, LearnedState]:
            if params is None:
                raise ValueError("LearnedOptimizer: update: expected params, received None.")
            count = optax.safe_increment(state.steps)
            decays = jnp.asarray(self.decays)

            def mean(g: Array, old: Array) -> Array:
                d = decays.astype(g.dtype).reshape(-1, *[1] * g.ndim)
                return d * old + (1 - d) * g

            means = jax.tree.map(mean, grads, state.means)
            squares = optax.tree.update_moment(grads, state.squares, self.square_decay, 2)
            left = 1 - decays**count
            times = jnp.tanh(count / jnp.asarray(_TIMES) - 1.0)

            def step(g: Array, m: Array, v: Array, w: Array) -> Array:
                root = jnp.sqrt(v / (1 - self.square_decay**count).astype(v.dtype) + _FLOOR)
                m = m / left.astype(m.dtype).reshape(-1, *[1] * g.ndim) / root
                relative = jnp.log(root) - jnp.log(root).mean()
                # An array of zeros has no size, and the ratio no derivative: both are zero there.
                square = jnp.mean(jnp.square(w))
                there = square > 0
                ratio = jnp.where(there, w / jnp.sqrt(jnp.where(there, square, 1)), 0)
                seen = [g / root, *m, relative, ratio]
                over = [jnp.broadcast_to(t.astype(g.dtype), g.shape) for t in times]
                hidden = jnp.stack([*seen, *over], -1) @ weights["first"] + weights["bias"]
                out = jnp.tanh(hidden) @ weights["last"] + weights["shift"]
                direction = m[main] + out[..., 0]
                return (-self.rate * jnp.exp(out[..., 1]) * direction).astype(g.dtype)

            updates = jax.tree.map(step, grads, means, squares, params)
            return updates, LearnedState(count, means, squares)

        return optax.GradientTransformationExtraArgs(init, update)


__all__ = ["LearnedOptimizer", "LearnedState"]
