"""Numbers that users pass as options: checked by name, and made plain."""

import math
import os
import sys
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from strategies.plain import python_number

T = TypeVar("T")


def integer(name: str, value: Any, low: int) -> int:
    """An integer of any library that is at least `low`.

    **Raises:** `ValueError` naming the option.
    """
    number = python_number(value)
    if type(number) is not int or number < low:
        raise ValueError(f"{name!r}: expected an integer >= {low}, received {value!r:.80}")
    return number


def positive(name: str, value: Any, high: float = math.inf) -> Any:
    """A finite number above zero, of any library, and at most `high`.

    **Raises:** `ValueError` naming the option.
    """
    number = value if isinstance(value, Fraction) else python_number(value)
    # An integer may be beyond all floats.
    most = min(high, sys.float_info.max)
    if number is None or isinstance(number, bool) or not 0 < number <= most:
        expected = "a positive finite number" if high == math.inf else f"a number in (0, {high:g}]"
        raise ValueError(f"{name!r}: expected {expected}, received {value!r:.80}")
    return number


def finite(name: str, value: Any, what: str = "a finite number") -> float:
    """A finite number of any library.

    **Raises:** `ValueError` naming the option.
    """
    number = python_number(value)
    try:
        if number is not None and not isinstance(number, bool) and math.isfinite(number):
            return float(number)
    except OverflowError:
        pass
    raise ValueError(f"{name!r}: expected {what}, received {value!r:.80}")


def nonnegative(name: str, value: Any) -> float:
    """A finite number of any library that is at least zero.

    **Raises:** `ValueError` naming the option.
    """
    number = finite(name, value, "a number >= 0")
    if number < 0:
        raise ValueError(f"{name!r}: expected a number >= 0, received {value!r:.80}")
    return number


def several(name: str, value: Any, what: str) -> tuple[Any, ...]:
    """The items of a sequence, or of another iterable that is no text and no mapping.

    **Raises:** `ValueError` naming the option.
    """
    if isinstance(value, str | bytes | Mapping | type) or not isinstance(value, Iterable):
        raise ValueError(f"{name!r}: expected {what}, received {value!r:.80}")
    try:
        return tuple(value)
    except TypeError:
        # An array without axes.
        raise ValueError(f"{name!r}: expected {what}, received {value!r:.80}") from None


def one_of(name: str, value: Any, options: Iterable[str]) -> str:
    """One of several words.

    **Raises:** `ValueError` naming the option.
    """
    known = sorted(options)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name!r}: expected one of {known}, received {value!r:.80}")
    return value


def text(name: str, value: Any) -> str:
    """A text.

    **Raises:** `ValueError` naming the option.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name!r}: expected a text, received {value!r:.80}")
    return value


def file_path(name: str, value: Any) -> Path:
    """The path of a file.

    **Raises:** `ValueError` naming the option.
    """
    if not isinstance(value, str | os.PathLike) or not Path(value).name:
        raise ValueError(f"{name!r}: expected the path of a file, received {value!r:.80}")
    return Path(value)


def functions(name: str, value: Any) -> tuple[Any, ...]:
    """The items of a list, all of which can be called.

    **Raises:** `ValueError` naming the option.
    """
    items = several(name, value, "a list of functions")
    for item in items:
        if not callable(item):
            raise ValueError(f"{name!r}: expected functions, received {item!r:.80}")
    return items


def instance(name: str, value: T, kind: type[Any]) -> T:
    """What is of a class.

    **Raises:** `ValueError` naming the option.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{name!r}: expected {kind.__name__}(...), received {value!r:.80}")
    return value


def instances(name: str, value: Iterable[T], kind: type[T]) -> list[T]:
    """The items of a list, all of a class.

    **Raises:** `ValueError` naming the option.
    """
    items = several(name, value, f"a list of {kind.__name__}s")
    return [instance(name, item, kind) for item in items]


def mapping(name: str, value: Any, what: str) -> dict[Any, Any]:
    """A copy of a mapping, `{}` of `None`.

    **Raises:** `ValueError` naming the option.
    """
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{name!r}: expected {what}, received {value!r:.80}")
    return dict(value or {})


def asks_to_stop(answer: Any) -> bool:
    """Whether a callback's answer ends the search.

    **Raises:** `ValueError` for an answer that is neither.
    """
    found = python_number(answer)
    if answer is not None and not isinstance(found, bool):
        raise ValueError(
            "'callbacks': expected True to stop the search, None or False to go on, received "
            f"{answer!r:.80}"
        )
    return bool(found)


def switch(name: str, value: Any) -> bool:
    """`True` or `False`, of any library.

    **Raises:** `ValueError` naming the option.
    """
    found = python_number(value)
    if not isinstance(found, bool):
        raise ValueError(f"{name!r}: expected True or False, received {value!r:.80}")
    return found
