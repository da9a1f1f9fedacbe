"""Plain Python numbers and containers out of what users have, and their JSON forms."""

import math
import sys
from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np


class NoNumberError(ValueError):
    """A number was expected, and something was received that is not even an array of them."""


def numbers_of(value: Any) -> np.ndarray | None:
    """NumPy's own integers, floats or booleans out of what any library has; `None` for all else.

    Half precision of machine learning, long doubles, decimals and fractions become floats. What a
    masked array hides is NaN: NumPy would give what lies below the mask.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        try:
            return np.ma.filled(value.astype(float), np.nan)
        except (OverflowError, TypeError, ValueError):
            return None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        # PyTorch gives no array of what has a gradient, nor of bfloat16, but lists of both.
        try:
            array = np.asarray(value.tolist())
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return None
    kind = array.dtype.kind
    if kind in "iub" or (kind == "f" and array.dtype.itemsize <= np.dtype(float).itemsize):
        return array
    # JAX's float0, no derivative, has names.
    registered = kind == "V" and array.dtype.names is None and array.dtype.type is not np.void
    exact = kind == "O" and all(isinstance(entry, Real | Decimal) for entry in array.flat)
    if kind != "f" and not registered and not exact:
        return None
    try:
        return array.astype(float)
    except (OverflowError, TypeError, ValueError):
        return None


def python_number(value: Any) -> bool | int | float | None:
    """A number of Python out of one of any library; `None` for all else, arrays with axes too."""
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    array = numbers_of(value)
    return None if array is None or array.shape else array.item()


def number_of(value: Any, name: str) -> Any:
    """A plain Python number, or `None`, from a scalar of any library.

    **Raises:** `NoNumberError` naming it; `ValueError` for an array of numbers.
    """
    if value is None or type(value) is float:
        return value
    array = numbers_of(value)
    if array is not None and array.size == 1:
        found = array.reshape(()).item()
        return float(found) if isinstance(found, bool) else found
    error = NoNumberError if array is None else ValueError
    raise error(f"{name!r}: expected a number, received {value!r:.80}")


def finite_number_of(value: Any, name: str) -> Any:
    """`number_of`, with `None` for NaN and infinity too: what is not known."""
    number = number_of(value, name)
    return number if number is None or math.isfinite(number) else None


def known_error(error: Any) -> Any:
    """An estimated error, `None` for NaN, which is "not known"; infinity stays, "unreliable"."""
    if error is None or is_traced(error):
        return error
    return None if math.isnan(error) else error


def is_traced(value: Any) -> bool:
    """Whether a value has no number yet, as its function is being compiled by JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def scalar(value: Any, name: str) -> Any:
    """`number_of` as a float; traced by JAX, an array without axes."""
    if is_traced(value):
        if value.size != 1:
            raise ValueError(f"{name!r}: expected a number, received {value.dtype}{value.shape}")
        return value.reshape(())
    return None if value is None else float(number_of(value, name))


def plain(tree: Any) -> Any:
    """Mappings, lists and plain numbers out of whatever arrays and containers a user has."""
    if isinstance(tree, Mapping):
        return {str(key): plain(leaf) for key, leaf in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(leaf) for leaf in tree]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if is_traced(tree):
        return tree
    if hasattr(tree, "__array__") or isinstance(tree, Real | Decimal):
        array = numbers_of(tree)
        if array is not None:
            return array.tolist()
        if getattr(tree, "dtype", np.dtype(object)).names:  # JAX's float0: no derivative
            return None
    return tree if not isinstance(tree, np.generic) else tree.item()


def shown(tree: Any) -> Any:
    """Nested values with a text in place of what JSON cannot hold: remarks, for people."""
    if isinstance(tree, Mapping):
        return {str(key): shown(leaf) for key, leaf in tree.items()}
    if isinstance(tree, list | tuple):
        return [shown(leaf) for leaf in tree]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    return f"{tree!r:.200}"


def to_json_values(tree: Any) -> Any:
    """Nested values with `None` for NaN and infinity, which JSON does not have."""
    if isinstance(tree, Mapping):
        return {key: to_json_values(leaf) for key, leaf in tree.items()}
    if isinstance(tree, list | tuple):
        return [to_json_values(leaf) for leaf in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree


def from_json_values(tree: Any) -> Any:
    """Nested values with NaN for `None`, the inverse of `to_json_values` for gradients."""
    if isinstance(tree, Mapping):
        return {key: from_json_values(leaf) for key, leaf in tree.items()}
    if isinstance(tree, list):
        return [from_json_values(leaf) for leaf in tree]
    return math.nan if tree is None else tree


def constraints_to_json(constraints: Mapping[str, float]) -> dict[str, Any]:
    """Constraints as JSON values; what is not finite as text, as JSON has no such numbers."""
    return {n: c if math.isfinite(c) else repr(float(c)) for n, c in constraints.items()}


def constraints_from_json(stored: Mapping[str, Any]) -> dict[str, float]:
    """The inverse of `constraints_to_json`."""
    return {str(name): float(entry) for name, entry in stored.items()}
