"""Which code a run depends on: the files of the project that a module imports, by content."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("hypergrad", "strategies", "experiments", "benchmarks")
# What only prints and draws changes no number.
LEFT_OUT = ("experiments.harness", "benchmarks.measure", "strategies.plots", "strategies.page")


def fingerprints(path: Path) -> dict[str, str]:
    """Fingerprint of the code of a module and of all that it imports, by path from the root.

    A name taken from a package counts as an import of the module that defines it: a change of one
    estimator does not touch a run with another one. Comments, docstrings, layout and the bounds of
    claims do not count: none of them changes what a run measures.
    """
    if not path.is_relative_to(ROOT / path.parent.name) or not path.exists():
        return {}
    found: dict[str, str] = {}
    waiting = [path]
    while waiting:
        source = waiting.pop()
        name = source.relative_to(ROOT).as_posix()
        if name not in found:
            found[name] = fingerprint(source)
            waiting += imports(source)
    return dict(sorted(found.items()))


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def fingerprint(path: Path) -> str:
    """A hash of the code of a file."""
    return hashlib.sha256(repr(canonical(parsed(path))).encode()).hexdigest()[:12]


def canonical(node: object) -> object:
    """A syntax tree as nested tuples, the same on every version of Python; no docstrings."""
    if isinstance(node, list):
        return tuple(canonical(item) for item in node if not (is_text(item) or is_claims(item)))
    if not isinstance(node, ast.AST):
        return node
    parts = ((key, canonical(value)) for key, value in ast.iter_fields(node))
    return type(node).__name__, *((key, value) for key, value in parts if value not in (None, ()))


def is_text(node: object) -> bool:
    """Whether it is a string that stands alone: a docstring."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def is_claims(node: object) -> bool:
    """Whether it is the argument `claims=[...]`."""
    return isinstance(node, ast.keyword) and node.arg == "claims"


@cache
def imports(path: Path) -> tuple[Path, ...]:
    """The files of the project that a file imports, anywhere in it."""
    here = module_of(path)
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                for name in taken(path, alias.asname or alias.name):
                    found |= set(resolved(alias.name, name))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found |= set(resolved(absolute(node, path, here), alias.name))
    return tuple(sorted(found))


def taken(path: Path, module: str) -> set[str | None]:
    """The names that a file takes from a module that it imports whole, as `module.name`."""
    used = {
        node.attr
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == module
    }
    return used or {None}


def resolved(module: str, name: str | None) -> Iterator[Path]:
    """The file that defines `name` of `module`, or the file of the module itself."""
    if module.partition(".")[0] not in PACKAGES or f"{module}.".startswith(
        tuple(f"{left}." for left in LEFT_OUT)
    ):
        return
    if name is not None and (file := file_of(f"{module}.{name}")) is not None:
        yield from resolved(f"{module}.{name}", None)
        return
    file = file_of(module)
    if file is None:
        return
    if file.name == "__init__.py" and name is not None:
        for node in ast.walk(parsed(file)):
            if not isinstance(node, ast.ImportFrom):
                continue
            originals = {alias.asname or alias.name: alias.name for alias in node.names}
            if name in originals:
                yield from resolved(absolute(node, file, module_of(file)), originals[name])
                return
    yield file


def absolute(node: ast.ImportFrom, path: Path, here: str) -> str:
    """The module that a `from ... import` names."""
    if not node.level:
        return node.module or ""
    up = node.level - (path.name == "__init__.py")
    parts = here.split(".")
    base = parts[: len(parts) - up] if up else parts
    return ".".join([*base, *([node.module] if node.module else [])])


def file_of(module: str) -> Path | None:
    """The source of a module, if there is such a module."""
    base = ROOT.joinpath(*module.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.exists():
            return path
    return None


def module_of(path: Path) -> str:
    """Dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
