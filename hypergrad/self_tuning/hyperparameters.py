"""Hyperparameters with bounded, positive or discrete values behind unconstrained numbers.

Self-tuning perturbs and moves unconstrained numbers `η`; the losses use the values `r(η)`. A
discrete value is `floor` of a bounded one: the training loss sees whole numbers, the response the
continuous `η`, so that its gradient goes through the response alone (MacKay et al. 2019, section
3.3).
"""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from hypergrad.expected import received, require_count, require_finite

# An initial value on a bound has no finite inverse: it is moved inside by this part of the range.
_INSIDE = 1e-3


class Bounded(eqx.Module):
    """A number in `(low, high)`: `low + (high − low) sigmoid(η)`. For rates and magnitudes.

    **Arguments:**

    - `low`, `high`: the bounds, `low < high`.
    - `initial`: the initial value, within the bounds. On a bound, or closer to it than 1/1000 of
      the range, it is moved inside by that much, where the inverse is finite.
    - `shape`: of an array of such hyperparameters, e.g. one a layer. Default `()`, a scalar.
    """

    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    initial: float = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True, default=())

    def __check_init__(self) -> None:
        _check_range(self)

    def value(self, eta: Array) -> Array:
        """`r(η)`."""
        return self.low + (self.high - self.low) * jax.nn.sigmoid(eta)

    def inverse(self, value: float) -> float:
        """`η` of a value within the bounds."""
        _check_inside(self, value)
        return _logit((value - self.low) / (self.high - self.low))


class Positive(eqx.Module):
    """A positive number `exp(η)`. For penalties.

    **Arguments:** `initial`: the initial value, positive. `shape`: as for `Bounded`.
    """

    initial: float = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True, default=())

    def __check_init__(self) -> None:
        _check_shape(self)
        self.inverse(self.initial)

    def value(self, eta: Array) -> Array:
        """`r(η)`."""
        return jnp.exp(eta)

    def inverse(self, value: float) -> float:
        """`log(value)`."""
        require_finite("Positive", "value", value)
        if value <= 0:
            raise ValueError(f"Positive: expected a positive number, received {value}.")
        return math.log(value)


class Discrete(eqx.Module):
    """A whole number from `low` to `high`, both included. For counts and lengths.

    The value is `floor(low + (high + 1 − low) sigmoid(η))`, an array of floating-point numbers; its
    derivative is zero. Only families that learn a response (self-tuning) can tune it: implicit
    differentiation and unrolling see that zero.

    **Arguments:**

    - `low`, `high`: the bounds, whole numbers with `low < high`.
    - `initial`: the initial value.
    - `shape`: as for `Bounded`.
    """

    low: int = eqx.field(static=True)
    high: int = eqx.field(static=True)
    initial: int = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True, default=())

    def __check_init__(self) -> None:
        for name in ("low", "high", "initial"):
            require_finite("Discrete", name, getattr(self, name))
            if getattr(self, name) != int(getattr(self, name)):
                raise ValueError(
                    f"Discrete: `{name}`: expected a whole number, received {getattr(self, name)}."
                )
        _check_range(self)

    def value(self, eta: Array) -> Array:
        """`r(η)`."""
        relaxed = self.low + (self.high + 1 - self.low) * jax.nn.sigmoid(eta)
        return jnp.clip(jnp.floor(relaxed), self.low, self.high)

    def inverse(self, value: float) -> float:
        """`η` in the middle of the interval that is rounded down to `value`."""
        _check_inside(self, value)
        return _logit((math.floor(value) + 0.5 - self.low) / (self.high + 1 - self.low))


Transform = Bounded | Positive | Discrete


class Hyperparameters(eqx.Module):
    """A set of named hyperparameters: their unconstrained numbers and their values.

    **Arguments:** `transforms`: a dict from names to `Bounded`, `Positive` or `Discrete`.

    !!! example

        ```python
        hyperparameters = Hyperparameters(
            {"dropout": Bounded(0.0, 0.9, initial=0.1, shape=(2,)), "decay": Positive(1e-4)}
        )
        hparams = hyperparameters.initial()          # what outer algorithms move
        values = hyperparameters.values(hparams)     # what the losses use
        ```
    """

    transforms: dict[str, Transform]

    def __init__(self, transforms: Mapping[str, Transform]):
        if not isinstance(transforms, Mapping) or not transforms:
            given = "none" if isinstance(transforms, Mapping) else received(transforms)
            raise ValueError(
                "Hyperparameters: transforms: expected a dict from names to Bounded, Positive or "
                f"Discrete, received {given}."
            )
        for name, transform in transforms.items():
            if not isinstance(transform, Transform):
                raise ValueError(
                    f"Hyperparameters: {name!r}: expected a transform (Bounded, Positive or "
                    f"Discrete), received {type(transform).__name__}. A choice without an order "
                    "has no "
                    "relaxation: leave it to a searcher."
                )
        self.transforms = dict(transforms)

    def initial(self, dtype: Any = None) -> dict[str, Array]:
        """The unconstrained numbers of the initial values, in JAX's default floating-point type."""
        return self.unconstrained({n: t.initial for n, t in self.transforms.items()}, dtype)

    def unconstrained(self, values: Mapping[str, Any], dtype: Any = None) -> dict[str, Array]:
        """The unconstrained numbers of the given values.

        Raises `ValueError` that names a missing, unknown or out-of-range hyperparameter.
        """
        self._check_names(values)
        result = {}
        for name, transform in self.transforms.items():
            try:
                numbers = jax.tree.map(transform.inverse, _nested(values[name]))
            except ValueError as error:
                raise ValueError(f"Hyperparameter {name!r}: {error}") from None
            dtype = jnp.zeros(()).dtype if dtype is None else dtype
            result[name] = jnp.broadcast_to(jnp.asarray(numbers, dtype), transform.shape)
        return result

    def values(self, hparams: Mapping[str, Array]) -> dict[str, Array]:
        """The values `r(η)`, within their domains for any finite `η`. Traceable."""
        self._check_names(hparams)
        return {n: t.value(jnp.asarray(hparams[n])) for n, t in self.transforms.items()}

    def check(self, hparams: Mapping[str, Array]) -> None:
        """Raise `ValueError` naming the first hyperparameter that is not finite or misshapen."""
        self._check_names(hparams)
        for name, transform in self.transforms.items():
            eta = jnp.asarray(hparams[name])
            if eta.shape != transform.shape:
                raise ValueError(
                    f"Hyperparameter {name!r}: expected shape {transform.shape}, received "
                    f"{eta.shape}."
                )
            if not bool(jnp.all(jnp.isfinite(eta))):
                raise ValueError(
                    f"Hyperparameter {name!r} left its domain: expected finite values, received "
                    f"{eta}."
                )

    def _check_names(self, given: Mapping[str, Any]) -> None:
        if set(given) != set(self.transforms):
            raise ValueError(
                f"Hyperparameters: expected the names {sorted(self.transforms)}, "
                f"received {sorted(given)}."
            )


def _nested(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _check_range(transform: Any) -> None:
    kind = type(transform).__name__
    low, high = transform.low, transform.high
    _check_shape(transform)
    require_finite(kind, "low", low)
    require_finite(kind, "high", high)
    if not low < high:
        raise ValueError(f"{kind}: expected low < high, received low={low}, high={high}.")
    _check_inside(transform, transform.initial)


def _check_shape(transform: Any) -> None:
    kind = type(transform).__name__
    if not isinstance(transform.shape, tuple):
        raise ValueError(
            f"{kind}: shape: expected a tuple such as (2,), received {received(transform.shape)}."
        )
    for length in transform.shape:
        require_count(kind, "shape", length, 0)


def _check_inside(transform: Any, value: float) -> None:
    require_finite(type(transform).__name__, "value", value)
    if not transform.low <= value <= transform.high:
        raise ValueError(
            f"{type(transform).__name__}: expected a number in "
            f"[{transform.low}, {transform.high}], received {value}."
        )


def _logit(fraction: float) -> float:
    fraction = min(max(fraction, _INSIDE), 1 - _INSIDE)
    return math.log(fraction / (1 - fraction))
