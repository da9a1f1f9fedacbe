"""Find a data file on this machine, or download it once."""

import gzip
import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path


def data_folder() -> Path:
    """`$HYPERGRAD_DATA`, or `~/.cache/hypergrad`."""
    return Path(os.environ.get("HYPERGRAD_DATA") or Path.home() / ".cache" / "hypergrad")


def read(relative: str, *, url: str, sha256: str, system: str = "", hint: str = "") -> bytes:
    """The contents of a file, unpacked if its name ends in `.gz`.

    **Arguments:**

    - `relative`: path below the data folder, `set/file`.
    - `url`: where it is downloaded from if it is nowhere on this machine.
    - `sha256`: of the (unpacked) contents.
    - `system`: a further place to look, e.g. where a distribution's package puts it.
    - `hint`: another way to get the file, for the error message.

    **Raises:** `FileNotFoundError` if the file can neither be found nor downloaded; `ValueError` if
    its contents are not the expected ones.
    """
    places = [data_folder() / relative, *([Path(system)] if system else [])]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        path = places[0]
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                packed = response.read()
        except (urllib.error.URLError, OSError) as error:
            looked = ", ".join(map(str, places))
            raise FileNotFoundError(
                f"{relative} is not on this machine (looked at {looked}) and could not be "
                f"downloaded from {url}: {error}. Put it there, or set HYPERGRAD_DATA. {hint}"
            ) from error
    else:
        packed = path.read_bytes()
    contents = gzip.decompress(packed) if relative.endswith(".gz") else packed
    found = hashlib.sha256(contents).hexdigest()
    if found != sha256:
        raise ValueError(f"{path}: expected contents with SHA-256 {sha256}, found {found}.")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(packed)
        temporary.replace(path)
    return contents
