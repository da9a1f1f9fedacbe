"""States of members on the disk, complete at every moment."""

import contextlib
import io
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from strategies.state import checksum

#: Before the archive comes its checksum: an archive's own covers its members, not its directory.
_DIGITS = len(checksum(b""))


@dataclass(frozen=True)
class Stored:
    """A member's state outside of the lanes: its age, and the leaves on the host."""

    age: int
    leaves: list[np.ndarray]


def write(path: str, members: Mapping[str, Stored], note: Mapping[str, Any]) -> None:
    """Write states by name, and a note of JSON values, in place of what was there.

    A disk that is full is a warning: what is there stays.
    """
    arrays = {
        f"{name}/{place}": leaf
        for name, kept in members.items()
        for place, leaf in enumerate(kept.leaves)
    }
    head = {"ages": {name: kept.age for name, kept in members.items()}, "note": dict(note)}
    content = io.BytesIO()
    np.savez(content, **{"head": np.array(json.dumps(head)), **arrays})  # type: ignore[arg-type]
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(checksum(content.getbuffer()).encode())
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        warnings.warn(f"the members' states were not saved: {error}", stacklevel=3)


def discard(path: str) -> None:
    """Remove what another run has left, whose results are gone."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def read(path: str) -> tuple[dict[str, Stored], dict[str, Any]]:
    """What `write` wrote; nothing if there is no file.

    A damaged file is a warning and nothing: members are trained again from their beginning, with
    the same results.
    """
    try:
        with open(path, "rb") as whole:
            stored, content = whole.read(_DIGITS), whole.read()
        if checksum(content).encode() != stored:
            raise ValueError("its checksum is another one")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            head = json.loads(str(file["head"]))
            leaves: dict[str, dict[int, np.ndarray]] = {name: {} for name in head["ages"]}
            for key in file.files:
                name, separator, place = key.rpartition("/")
                if separator:
                    leaves[name][int(place)] = file[key]
            return {
                name: Stored(int(age), [leaves[name][i] for i in range(len(leaves[name]))])
                for name, age in head["ages"].items()
            }, head["note"]
    except FileNotFoundError:
        return {}, {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        warnings.warn(
            f"{path} is damaged ({error!r:.200}); members are trained again from their beginning",
            stacklevel=3,
        )
        return {}, {}


def expect_seed(path: str, note: Mapping[str, Any], seed: int) -> None:
    """Refuse to go on from members whose keys were of another seed.

    **Raises:** `ValueError` naming both.
    """
    known = note.get("seed", seed)
    if known != seed:
        raise ValueError(
            f"'seed': expected {known}, that of the members in {path}, received {seed}"
        )
