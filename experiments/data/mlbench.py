"""Two sets with two classes from R's mlbench (Leisch and Dimitriadou), first of the UCI archive."""

from typing import Literal

import numpy as np

from experiments.data.files import read
from experiments.data.rda import data_frame
from experiments.data.tabular import Part

#: Of the files of mlbench 2.1-3.
SHA256 = {
    "Ionosphere": "1e72974db40749e025434dbb45c815c826d3cce7c1b324fd07ee89aee44e08b7",
    "PimaIndiansDiabetes": "fc134e041577d3ff2b784e1610b6fbbe165f815abc83652ba77a28f4bccb89ec",
}
#: The column with the class, and what is `1` there.
_POSITIVE = {"Ionosphere": ("Class", "good"), "PimaIndiansDiabetes": ("diabetes", "pos")}


def mlbench(name: Literal["Ionosphere", "PimaIndiansDiabetes"]) -> Part:
    """Features that are not constant, unscaled, and classes -1 and 1.

    Read from `$HYPERGRAD_DATA/mlbench/NAME.rda`, else from an installed mlbench, else downloaded.

    **Returns:** `x` float64 of shape `(351, 33)` or `(768, 8)`; `y` float64.

    **Raises:** `FileNotFoundError` if the set is neither on this machine nor can be downloaded.
    """
    packed = read(
        f"mlbench/{name}.rda",
        url=f"https://raw.githubusercontent.com/cran/mlbench/2.1-3/data/{name}.rda",
        sha256=SHA256[name],
        system=f"/usr/lib/R/site-library/mlbench/data/{name}.rda",
        hint="On Debian and Ubuntu: apt-get install r-cran-mlbench.",
    )
    columns = data_frame(packed)
    key, positive = _POSITIVE[name]
    y = np.where(columns.pop(key) == positive, 1.0, -1.0)
    x = np.stack([column.astype(float) for column in columns.values()], axis=1)
    return Part(x[:, np.std(x, axis=0) > 0], y)
