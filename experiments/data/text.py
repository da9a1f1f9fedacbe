"""Text in domains, from what every Python brings: bytes, cut into pieces of one length.

Source code, the language's reference manual, tables of encodings, names of Unicode characters,
embedded documentation of functions, a dictionary of HTML entities with numbers, and, of modules
that are in none of these, syntax trees and instructions of the interpreter. Nothing is downloaded;
another version of Python has slightly other texts.
"""

import ast
import dis
import html.entities
import sysconfig
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
# Of one domain at most, so that all are read in a moment.
_BYTES = 400_000


class Domain(NamedTuple):
    """Pieces of text for training, validation and test: bytes, shape `(n, length)`."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def text_domains(
    length: int, *, seed: int = 0, names: Sequence[str] | None = None
) -> dict[str, Domain]:
    """Domains by name.

    **Arguments:**

    - `length`: bytes of a piece.
    - `seed`: of the split: a tenth of each domain for validation, a tenth for the test.
    - `names`: of the domains wanted, which are the keys of `DOMAINS`. Default: all.
    """
    return {
        name: _split(make()[:_BYTES], length, np.random.default_rng([seed, number]))
        for number, (name, make) in enumerate(DOMAINS.items())
        if names is None or name in names
    }


def _split(text: bytes, length: int, rng: np.random.Generator) -> Domain:
    count = len(text) // length
    pieces = np.frombuffer(text[: count * length], np.uint8).reshape(count, length)
    pieces = pieces[rng.permutation(count)]
    part = count // 10
    return Domain(pieces[2 * part :], pieces[:part], pieces[part : 2 * part])


def _files(pattern: str) -> list[Path]:
    return sorted(path for path in LIBRARY.glob(pattern) if path.is_file())


def _code() -> bytes:
    return b"".join(path.read_bytes() for path in _files("[a-h]*.py"))


def _manual() -> bytes:
    import pydoc_data.topics

    return "\n".join(pydoc_data.topics.topics.values()).encode()


def _encodings() -> bytes:
    return b"".join(path.read_bytes()[2000:12000] for path in _files("encodings/cp*.py"))


def _names() -> bytes:
    found = (unicodedata.name(chr(point), "") for point in range(0x20, 0x3000))
    return "\n".join(name for name in found if name).encode()


def _documentation() -> bytes:
    """Docstrings of the modules that `_code` leaves out."""
    text = ""
    for path in _files("[i-z]*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text += (ast.get_docstring(node) or "") + "\n"
        if len(text) > _BYTES:
            break
    return text.encode()


def _entities() -> bytes:
    table = html.entities.html5
    return "\n".join(f"&{name} {[ord(c) for c in text]}" for name, text in table.items()).encode()


def _syntax() -> bytes:
    return _made_of("_[a-o]*.py", lambda source: ast.dump(ast.parse(source), indent=1))


def _instructions() -> bytes:
    return _made_of("_[p-z]*.py", lambda source: dis.Bytecode(compile(source, "", "exec")).dis())


def _made_of(pattern: str, make: Callable[[bytes], str]) -> bytes:
    text = ""
    for path in _files(pattern):
        text += make(path.read_bytes())
        if len(text) > _BYTES:
            break
    return text.encode()


DOMAINS: dict[str, Callable[[], bytes]] = {
    "code": _code,
    "manual": _manual,
    "encodings": _encodings,
    "names": _names,
    "documentation": _documentation,
    "entities": _entities,
    "syntax": _syntax,
    "instructions": _instructions,
}
