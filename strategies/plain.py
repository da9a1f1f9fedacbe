"""Plain Python numbers and containers out of what users have, and their JSON forms."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np


class NoNumberError(ValueError):
    """A number was expected, and something was received that is not even an array of them."""


def number_of(value: Any, name: str) -> Any:
    """A plain Python number, or `None`, from a scalar of any library.

    **Raises:** `NoNumberError` naming it; `ValueError` for an array of numbers.
    """
    if value is None or type(value) is float:
        return value
    numeric = False
    try:
        array = np.asarray(value)
        numeric = array.dtype.kind in "iufb"
        if array.size == 1 and numeric:
            found = array.reshape(()).item()
            return float(found) if isinstance(found, bool) else found
    except (TypeError, ValueError):
        pass
    error = ValueError if numeric else NoNumberError
    raise error(f"{name!r}: expected a number, received {value!r:.80}")


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
    if hasattr(tree, "__array__"):
        array = np.asarray(tree)
        if array.dtype.kind in "iufb":
            return array.tolist()
        if array.dtype.kind == "V" or array.dtype.names:  # JAX's float0: no derivative
            return None
    return tree if not isinstance(tree, np.generic) else tree.item()


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
