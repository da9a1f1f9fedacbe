"""Arrests for possession of marijuana in Toronto, 1997 to 2002 (Friendly; R's carData)."""

import csv
import importlib.util
import io
import zipfile
from pathlib import Path

import numpy as np

from experiments.data.files import read
from experiments.data.tabular import Part

SHA256 = "330f08cf2d5a2caedada35864b7a423b0b26c542c2d6f8122511048950a26c85"
MEMBER = "sklego/data/arrests.zip"
#: Columns of `x`, in order; `black` is the group.
FEATURES = ("black", "year", "age", "male", "employed", "citizen", "checks")


def arrests() -> Part:
    """5,226 people: whether they were released with a summons, and what was known of them.

    Read from `$HYPERGRAD_DATA/arrests/arrests.zip`, else from an installed scikit-lego, whose file
    it is, else downloaded.

    **Returns:** `x` float64 of shape `(5226, 7)`, columns `FEATURES`, unscaled; `y` int64, 1 for
    released.

    **Raises:** `FileNotFoundError` if the set is neither on this machine nor can be downloaded.
    """
    packed = read(
        "arrests/arrests.zip",
        url="https://raw.githubusercontent.com/koaning/scikit-lego/main/sklego/data/arrests.zip",
        sha256=SHA256,
        system=_installed(),
        hint="Or: pip install --no-deps scikit-lego.",
    )
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read(MEMBER).decode())))
    yes = {"black": ("colour", "Black"), "male": ("sex", "Male")}
    yes |= {name: (name, "Yes") for name in ("employed", "citizen")}
    columns = [
        [float(row[yes[name][0]] == yes[name][1]) if name in yes else float(row[name])
         for row in rows]
        for name in FEATURES
    ]  # fmt: skip
    released = np.array([row["released"] == "Yes" for row in rows], np.int64)
    return Part(np.array(columns).T, released)


def _installed() -> str:
    """Where scikit-lego keeps the file; it is not imported."""
    found = importlib.util.find_spec("sklego")
    places = [] if found is None else found.submodule_search_locations or []
    return str(Path(places[0]) / "data" / "arrests.zip") if places else ""
