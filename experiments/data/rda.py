"""Data frames saved by R (`save`, XDR format 2 or 3), as columns."""

import bz2
import gzip
import lzma
from typing import Any

import numpy as np

# What R calls its types (R Internals, "Serialization Formats").
_SYMBOL, _PAIRLIST, _STRING = 1, 2, 9
_LOGICAL, _INTEGER, _REAL, _STRINGS, _LIST = 10, 13, 14, 16, 19
_NIL, _REFERENCE = 254, 255
_HAS_ATTRIBUTES, _HAS_TAG = 1 << 9, 1 << 10


def data_frame(packed: bytes) -> dict[str, np.ndarray]:
    """Columns by name of the one data frame in an `.rda` file.

    **Returns:** numbers, or strings for a factor, empty where one is missing.

    **Raises:** `ValueError` for other contents.
    """
    contents = _unpacked(packed)
    if contents[:7] not in (b"RDX2\nX\n", b"RDX3\nX\n"):
        raise ValueError(
            f"expected a file written by save() of R in binary form, received {contents[:7]!r}"
        )
    named = _Reader(contents[7:]).file()
    frames = [value for value in named.values() if isinstance(value, dict)]
    if len(frames) != 1:
        raise ValueError(f"expected one data frame, received {len(frames)} among {sorted(named)}")
    return frames[0]


def _unpacked(packed: bytes) -> bytes:
    for magic, unpack in (
        (b"\xfd7zXZ", lzma.decompress),
        (b"BZh", bz2.decompress),
        (b"\x1f\x8b", gzip.decompress),
    ):
        if packed.startswith(magic):
            return unpack(packed)
    return packed


class _Reader:
    """Reads one item after the other."""

    def __init__(self, contents: bytes) -> None:
        self.contents, self.at = contents, 0
        self.symbols: list[str] = []

    def file(self) -> dict[str, Any]:
        """What was saved, by name."""
        version, _, _ = self.numbers("i4", 3)
        if version == 3:
            self.at += int(self.numbers("i4", 1)[0])  # the native encoding
        return self.item()

    def numbers(self, kind: str, count: int) -> np.ndarray:
        """Big-endian numbers."""
        found = np.frombuffer(self.contents, f">{kind}", count, self.at)
        self.at += found.nbytes
        return found.astype(kind)

    def item(self) -> Any:
        """The next item, whatever it is."""
        flags = int(self.numbers("i4", 1)[0])
        kind = flags & 255
        if kind == _NIL:
            return None
        if kind == _REFERENCE:
            return self.symbols[(flags >> 8) - 1]
        if kind == _SYMBOL:
            self.symbols.append(self.item())
            return self.symbols[-1]
        if kind == _PAIRLIST:
            return self.pairs(flags)
        if kind == _STRING:
            length = int(self.numbers("i4", 1)[0])
            self.at += max(0, length)
            return self.contents[self.at - length : self.at].decode() if length >= 0 else None
        if kind in (_LOGICAL, _INTEGER):
            found: Any = self.numbers("i4", int(self.numbers("i4", 1)[0]))
        elif kind == _REAL:
            found = self.numbers("f8", int(self.numbers("i4", 1)[0]))
        elif kind in (_STRINGS, _LIST):
            found = [self.item() for _ in range(int(self.numbers("i4", 1)[0]))]
        else:
            raise ValueError(f"expected parts of a data frame, received R's type {kind}")
        attributes = (self.item() if flags & _HAS_ATTRIBUTES else None) or {}
        if "levels" in attributes:
            # A missing one is the smallest integer, and the last of the names.
            return np.array([*attributes["levels"], ""])[np.maximum(found, 0) - 1]
        if kind == _LIST and "names" in attributes:
            return dict(zip(attributes["names"], found, strict=True))
        return found

    def pairs(self, flags: int) -> dict[str, Any]:
        """A pairlist, to its end."""
        found: dict[str, Any] = {}
        while flags & 255 != _NIL:
            if flags & _HAS_ATTRIBUTES:
                self.item()
            name = self.item() if flags & _HAS_TAG else None
            found[str(name)] = self.item()
            flags = int(self.numbers("i4", 1)[0])
        return found
