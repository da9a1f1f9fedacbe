"""A run on disk: exact, atomic, with a checksum and a backup, and tied to its problem.

One file holds the arrays bit for bit and a JSON header (identity of the problem, history), after a
line with the format and the checksum of all that follows. It is written under a temporary name and
renamed; the file before it stays as `*.bak`.
"""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from hypergrad.outer.identity import plain_array

FORMAT = 2
_FIRST = f"hypergrad checkpoint {FORMAT} ".encode()
# Format 1 was a bare archive, and knew functions by their names only.
_FIRST_OF_1 = b"PK"


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued: unreadable, or of another problem."""


def save(path: Path, tree: PyTree, identity: Mapping[str, str], extra: Mapping[str, Any]) -> None:
    """Write a checkpoint.

    **Arguments:**

    - `path`: the file. Its last version is kept beside it, with `.bak` added to its name.
    - `tree`: any pytree; its array leaves are stored.
    - `identity`: what the run is of: a digest for each part.
    - `extra`: JSON-safe values.

    **Raises:** `OSError` if the disk refuses; the last version is then untouched.
    """
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    arrays = [plain_array(x) for x in leaves]
    header = {
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
    content = io.BytesIO()
    np.savez(content, **payload)
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name for all processes: what a killed one has left is overwritten by the next save.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(_FIRST + _checksum(content.getbuffer()))
            file.write(content.getbuffer())
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
    path = path.resolve()
    failures = []
    for candidate in (path, _backup(path)):
        if not candidate.exists():
            continue
        try:
            archive = _verified(candidate.read_bytes())
        except (OSError, ValueError) as error:
            failures.append(f"{candidate}: {error}")
            continue
        if failures:
            warnings.warn(
                f"{failures[0]} cannot be read; continuing from the backup {candidate}.",
                stacklevel=3,
            )
        return _restore(candidate, archive, like, identity)
    raise CheckpointError(f"checkpoint: expected a readable file: {'; '.join(failures) or path}.")


def exists(path: Path) -> bool:
    """Whether there is a checkpoint, or the backup of one."""
    path = path.resolve()
    return path.exists() or _backup(path).exists()


def _backup(path: Path) -> Path:
    return path.with_name(path.name + ".bak")


def _checksum(content: bytes | memoryview) -> bytes:
    return hashlib.sha256(content).hexdigest().encode() + b"\n"


def _key_kind(x: Any) -> str | None:
    return str(jax.random.key_impl(x)) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else None


def _verified(data: bytes) -> bytes:
    """The archive of a file that is as it was written."""
    if data.startswith(_FIRST_OF_1):
        raise ValueError(f"expected format {FORMAT}, received 1, the one of version 0.1.0")
    start = len(_FIRST) + len(_checksum(b""))
    if not data.startswith(_FIRST) or data[len(_FIRST) : start] != _checksum(data[start:]):
        raise ValueError(f"it is damaged, or no checkpoint of format {FORMAT}")
    return data[start:]


def _restore(
    path: Path, archive: bytes, like: PyTree, identity: Mapping[str, str]
) -> tuple[PyTree, dict[str, Any]]:
    with np.load(io.BytesIO(archive), allow_pickle=False) as file:
        header = json.loads(file["header"].tobytes())
        blobs = [
            np.frombuffer(file[f"array{i}"].tobytes(), jnp.dtype(array["dtype"]))
            for i, array in enumerate(header["arrays"])
        ]
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
            f"{path}: expected {len(leaves)} arrays, received {len(blobs)}; it was written by "
            "another version of the algorithm."
        )
    arrays = []
    for slot, blob, stored in zip(leaves, blobs, header["arrays"], strict=True):
        array = jnp.asarray(blob.reshape(stored["shape"]))
        if stored["key"] is not None:
            array = jax.random.wrap_key_data(array, impl=stored["key"])
        if array.shape != slot.shape or array.dtype != slot.dtype:
            raise CheckpointError(
                f"{path}: expected an array {slot.dtype}{slot.shape}, received "
                f"{array.dtype}{array.shape}."
            )
        arrays.append(array)
    return eqx.combine(jax.tree.unflatten(structure, arrays), static), header["extra"]
