"""What an object is, in one line that is the same in every process.

A saved search stores choices by their position and constraints by their name, so it must know that
they are still the same. The text of a function or of an object is its address in memory; here they
count by their content.
"""

import functools
import hashlib
from collections.abc import Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

#: Objects inside objects are looked into so far. Functions and collections do not count: a chain of
#: optax with a schedule in it is ten of them deep.
_DEPTH = 6


def content(value: Any, depth: int = _DEPTH, around: frozenset[int] = frozenset()) -> str:
    """The line of a value: its `repr` where that is plain data, a fingerprint where it is not.

    `depth` is how many objects deep it looks, `around` the `id`s of what it is inside of.
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if depth == 0 or id(value) in around:
        return _name(type(value))
    inside = functools.partial(content, depth=depth, around=around | {id(value)})
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{inside(k)}: {inside(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        # JSON makes lists of tuples, so that one is as good as the other.
        return f"[{', '.join(map(inside, value))}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(inside, value)))}}}"
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        held = inside(array.tolist()) if array.dtype.kind == "O" else _digest(array.tobytes())
        return f"array({array.dtype}, {array.shape}, {held})"
    if isinstance(value, functools.partial):
        return f"partial({inside(value.func)}, {inside(value.args)}, {inside(value.keywords)})"
    if isinstance(value, MethodType):
        return f"{_name(value.__func__)} of {inside(value.__self__)}"
    if isinstance(value, FunctionType):
        return _function(value, inside)
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, type | BuiltinFunctionType):
        return _name(value)
    if (wrapped := getattr(value, "__wrapped__", None)) is not None:  # compiled, or cached
        return f"{_name(type(value))}({inside(wrapped)})"
    if hasattr(value, "__qualname__"):
        return _name(value)
    if attributes := getattr(value, "__dict__", None):
        return f"{_name(type(value))}({inside(attributes, depth=depth - 1)})"
    text = repr(value)
    return _name(type(value)) if " at 0x" in text else f"{_name(type(value))}({text})"


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', value)}"


def _function(value: FunctionType, inside: Any) -> str:
    """Its name and defaults; its instructions and what it has captured where many share a name."""
    defaults = f"{inside(value.__defaults__)}, {inside(value.__kwdefaults__)}"
    if "<" not in value.__qualname__:
        return f"{_name(value)}({defaults})"
    captured = [inside(cell.cell_contents) for cell in value.__closure__ or () if _full(cell)]
    return (
        f"{_name(value)}({defaults}, {_digest(repr([_code(value.__code__), captured]).encode())})"
    )


def _full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _code(code: CodeType) -> list[Any]:
    constants = [_code(c) if isinstance(c, CodeType) else content(c) for c in code.co_consts]
    return [code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants]


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]
