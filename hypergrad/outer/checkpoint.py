"""A run on disk: exact, atomic, with a backup, and tied to its problem.

One file holds the arrays bit for bit and a JSON header (format version, identity of the problem,
history). It is written under a temporary name and renamed; the file before it stays as `*.bak`.
"""

import functools
import hashlib
import json
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

FORMAT = 1

_ADDRESS = re.compile(r" at 0x[0-9a-f]+|\b0x[0-9a-f]{6,}")


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued: unreadable, or of another problem."""


def save(path: Path, tree: PyTree, identity: Mapping[str, str], extra: Mapping[str, Any]) -> None:
    """Write a checkpoint.

    **Arguments:**

    - `path`: the file. Its last version is kept beside it, with `.bak` added to its name.
    - `tree`: any pytree; its array leaves are stored.
    - `identity`: what the run is of, see `identify`.
    - `extra`: JSON-safe values.

    **Raises:** `OSError` if the disk refuses; the last version is then untouched.
    """
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    arrays = [_plain(x) for x in leaves]
    header = {
        "format": FORMAT,
        "identity": dict(identity),
        "arrays": [
            {"dtype": str(a.dtype), "shape": a.shape, "key": _key_kind(x)}
            for a, x in zip(arrays, leaves, strict=True)
        ],
        "extra": dict(extra),
    }
    payload: dict[str, Any] = {
        f"array{i}": np.frombuffer(a.tobytes(), np.uint8) for i, a in enumerate(arrays)
    }
    payload["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **payload)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.replace(_backup(path))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, like: PyTree, identity: Mapping[str, str]) -> tuple[PyTree, dict[str, Any]]:
    """Read a checkpoint, or its backup if the file itself is damaged or missing.

    **Arguments:**

    - `path`: the file.
    - `like`: a pytree of the structure saved; arrays may be `jax.ShapeDtypeStruct`s.
    - `identity`: what the run to be continued is of.

    **Returns:** the pytree, and the extra values.

    **Raises:** `CheckpointError` if neither file can be read, or if the checkpoint is of another
    problem: the message names every part that differs.
    """
    failures = []
    for candidate in (path, _backup(path)):
        if not candidate.exists():
            continue
        try:
            header, blobs = _read(candidate)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            failures.append(f"{candidate}: {error}")
            continue
        if failures:
            warnings.warn(
                f"{failures[0]} cannot be read; continuing from the backup {candidate}.",
                stacklevel=3,
            )
        return _restore(candidate, header, blobs, like, identity)
    raise CheckpointError(f"No readable checkpoint: {'; '.join(failures) or path}.")


def exists(path: Path) -> bool:
    """Whether there is a checkpoint, or the backup of one."""
    return path.exists() or _backup(path).exists()


def identify(**parts: Any) -> dict[str, str]:
    """A digest for each part: of values for arrays, of names and closures for functions."""
    return {
        name: hashlib.sha256(describe(part).encode()).hexdigest() for name, part in parts.items()
    }


def describe(thing: Any, depth: int = 8) -> str:
    """A text that is the same for the same options in another process."""
    if depth == 0:
        return "..."
    inner = functools.partial(describe, depth=depth - 1)
    if isinstance(thing, jax.Array | np.ndarray | np.generic):
        array = _plain(thing)
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        return f"{array.dtype}{array.shape}:{digest}"
    if isinstance(thing, Mapping):
        return "{" + ",".join(f"{k}:{inner(v)}" for k, v in thing.items()) + "}"
    if isinstance(thing, tuple | list):
        return f"{type(thing).__name__}[" + ",".join(map(inner, thing)) + "]"
    if isinstance(thing, functools.partial):
        return f"partial({inner(thing.func)},{inner(thing.args)},{inner(thing.keywords)})"
    if hasattr(thing, "__dataclass_fields__"):
        fields = (f"{k}={inner(getattr(thing, k))}" for k in thing.__dataclass_fields__)
        return f"{type(thing).__qualname__}({','.join(fields)})"
    if callable(thing) and hasattr(thing, "__qualname__"):
        cells = getattr(thing, "__closure__", None) or ()
        inside = (inner(cell.cell_contents) for cell in cells)
        return f"{thing.__module__}.{thing.__qualname__}({','.join(inside)})"
    return _ADDRESS.sub("", repr(thing))


def describe_loss(loss: Any, *args: PyTree) -> str:
    """The traced program of a loss, and the values of the constants that it closes over."""
    traced = eqx.filter_make_jaxpr(loss)(*args)[0]
    constants = ",".join(describe(constant) for constant in traced.consts)
    return _ADDRESS.sub("", str(traced.jaxpr)) + constants


def _backup(path: Path) -> Path:
    return path.with_name(path.name + ".bak")


def _key_kind(x: Any) -> str | None:
    return str(jax.random.key_impl(x)) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else None


def _plain(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x)


def _read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        header = json.loads(file["header"].tobytes())
        if header["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, found {header['format']}")
        blobs = []
        for i, array in enumerate(header["arrays"]):
            flat = np.frombuffer(file[f"array{i}"].tobytes(), jnp.dtype(array["dtype"]))
            blobs.append(flat.reshape(array["shape"]))
        return header, blobs


def _restore(
    path: Path,
    header: dict[str, Any],
    blobs: list[np.ndarray],
    like: PyTree,
    identity: Mapping[str, str],
) -> tuple[PyTree, dict[str, Any]]:
    saved = header["identity"]
    names = [name for name in identity if saved.get(name) != identity[name]]
    if names:
        raise CheckpointError(
            f"{path} is the checkpoint of another problem: it differs in {', '.join(names)}. "
            "Choose another path, or delete the file to start over."
        )

    def is_slot(x: Any) -> bool:
        return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)

    slots, static = eqx.partition(like, is_slot)
    leaves, structure = jax.tree.flatten(slots)
    if len(leaves) != len(blobs):
        raise CheckpointError(
            f"{path}: expected {len(leaves)} arrays, found {len(blobs)}; it was written by another "
            "version of the algorithm."
        )
    arrays = []
    for slot, blob, stored in zip(leaves, blobs, header["arrays"], strict=True):
        array = jnp.asarray(blob)
        if stored["key"] is not None:
            array = jax.random.wrap_key_data(array, impl=stored["key"])
        if array.shape != slot.shape or array.dtype != slot.dtype:
            raise CheckpointError(
                f"{path}: expected an array {slot.dtype}{slot.shape}, found "
                f"{array.dtype}{array.shape}."
            )
        arrays.append(array)
    return eqx.combine(jax.tree.unflatten(structure, arrays), static), header["extra"]
