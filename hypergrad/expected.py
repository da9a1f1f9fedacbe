"""Arguments of another kind than expected, refused in one line that says what was given."""

import math
from numbers import Integral, Real
from typing import Any

import jax
import numpy as np
import optax


def received(value: Any) -> str:
    """What was given, in a few words and without its numbers."""
    if isinstance(value, type):
        return f"the class {value.__name__} (make one: {value.__name__}(...))"
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, optax.GradientTransformation):
        return "an optax optimizer"
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def require(owner: str, name: str, value: Any, kind: type, example: str) -> None:
    """Refuse a value that is no instance of a class.

    **Arguments:**

    - `owner`, `name`: who is given it, and as which argument.
    - `kind`: the class.
    - `example`: how to make one.

    **Raises:** `ValueError` that names all of them.
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise ValueError(
            f"{owner}: {name!r}: expected {article} {kind.__name__} such as {example}, received "
            f"{received(value)}."
        )


def require_optimizer(owner: str, value: Any) -> None:
    """Refuse what is no optax optimizer, such as the function that makes one.

    **Raises:** `ValueError` that says what to write.
    """
    if isinstance(value, optax.GradientTransformation):
        return
    given = f"the function {uncalled(value)}" if makes_optimizer(value) else received(value)
    raise ValueError(
        f"{owner}: 'optimizer': expected an optax optimizer such as optax.adam(0.1), received "
        f"{given}."
    )


def makes_optimizer(value: Any) -> bool:
    """Whether it is a function of optax, in place of the optimizer that it makes."""
    return callable(value) and str(getattr(value, "__module__", "")).startswith("optax.")


def uncalled(value: Any) -> str:
    """The name of a function of optax, and what to do with it."""
    return f"{value.__name__} (call it: optax.{value.__name__}(...))"


def require_function(owner: str, name: str, value: Any) -> None:
    """Refuse what is no function, a class included.

    **Raises:** `ValueError` that says what was given.
    """
    if not callable(value) or isinstance(value, type):
        raise ValueError(f"{owner}: {name!r}: expected a function, received {received(value)}.")


def require_function_fields(owner: Any, *names: str, optional: tuple[str, ...] = ()) -> None:
    """Refuse fields of an object that are no functions; those in `optional` may be `None`.

    **Raises:** `ValueError` that says what was given, and as which field.
    """
    for name in (*names, *optional):
        value = getattr(owner, name)
        if value is not None or name in names:
            require_function(type(owner).__name__, name, value)


def require_functions(owner: str, name: str, value: Any) -> None:
    """Refuse what is no list or tuple of functions.

    **Raises:** `ValueError` that says what was given.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"{owner}: {name!r}: expected a list of functions, received {received(value)}."
        )
    for function in value:
        require_function(owner, name, function)


def require_count(owner: str, name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no integer, of any library, of at least `least`.

    **Raises:** `ValueError` that names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(
            f"{owner}: {name}: expected an integer >= {least}, received {_number(value)}."
        )


def require_seed(owner: str, value: Any) -> None:
    """Refuse what is no seed of random numbers: an integer from 0 to 2^63 - 1.

    **Raises:** `ValueError` that names the argument.
    """
    require_count(owner, "seed", value, 0)
    if value >= 2**63:
        raise ValueError(f"{owner}: seed: expected an integer below 2^63, received {value!r:.40}.")


def require_flag(owner: str, name: str, value: Any) -> None:
    """Refuse what is neither `True` nor `False`.

    **Raises:** `ValueError` that names the argument.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{owner}: {name}: expected True or False, received {_number(value)}.")


def require_number(owner: str, name: str, value: Any) -> None:
    """Refuse what is no real number of Python or NumPy.

    **Raises:** `ValueError` that names the argument.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise ValueError(f"{owner}: {name}: expected a number, received {_number(value)}.")


def require_scalar(owner: str, name: str, value: Any) -> None:
    """Refuse what is no real number of Python or NumPy, and no array of one; that may be traced.

    **Raises:** `ValueError` that names the argument.
    """
    if not isinstance(value, jax.Array | np.ndarray):
        require_number(owner, name, value)
    elif value.shape != ():
        raise ValueError(
            f"{owner}: {name}: expected one number, received an array of shape {value.shape}."
        )


def require_positive(owner: str, name: str, value: Any) -> None:
    """Refuse a number of Python that is not above zero; an array, which may be traced, passes.

    **Raises:** `ValueError` that names the argument.
    """
    if isinstance(value, float | int) and not value > 0:
        raise ValueError(f"{owner}: {name}: expected a number > 0, received {_number(value)}.")


def require_finite(owner: str, name: str, value: Any) -> None:
    """Refuse what is no real number, is not finite, or is too large for a float.

    **Raises:** `ValueError` that names the argument.
    """
    require_number(owner, name, value)
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError(f"{owner}: {name}: expected a finite number, received {_number(value)}.")


def require_numbers(owner: str, name: str, value: Any) -> np.ndarray:
    """Numbers of any library as an array of floats.

    **Raises:** `ValueError` that names the argument, for what is none.
    """
    try:
        if isinstance(value, str | bytes) or np.asarray(value).dtype.kind not in "iufO":
            raise ValueError
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{owner}: {name}: expected numbers, received {_number(value)}.") from None


def require_array(owner: str, name: str, value: Any) -> None:
    """Refuse what is no array of floating-point numbers.

    **Raises:** `ValueError` that names the argument.
    """
    if not isinstance(value, np.ndarray | jax.Array) or not jax.dtypes.issubdtype(
        value.dtype, np.inexact
    ):
        raise ValueError(
            f"{owner}: {name}: expected an array of floating-point numbers, received "
            f"{received(value)}."
        )


def require_key(owner: str, name: str, value: Any) -> None:
    """Refuse what is no key of `jax.random`, typed or raw.

    **Raises:** `ValueError` that says how to make one.
    """
    array = isinstance(value, np.ndarray | jax.Array)
    typed = array and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    raw = array and value.dtype == np.uint32
    # A raw key is a vector of words, a typed one has no axis.
    if not (typed or raw) or value.ndim != int(raw):
        raise ValueError(
            f"{owner}: {name}: expected a key such as jax.random.key(0), received "
            f"{received(value)}."
        )


def require_choice(owner: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse what is none of some words.

    **Raises:** `ValueError` that lists them.
    """
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(f'"{choice}"' for choice in choices[:-1]) + f' or "{choices[-1]}"'
        given = repr(value) if isinstance(value, str) else received(value)
        raise ValueError(f"{owner}: {name}: expected {listed}, received {given}.")


def _number(value: Any) -> str:
    plain = isinstance(value, Real) and not isinstance(value, np.ndarray | jax.Array)
    return f"{value!r:.40}" if plain else received(value)
