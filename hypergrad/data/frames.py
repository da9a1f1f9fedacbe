"""Data frames in, data frames out; pandas is loaded only where a frame is asked for."""

import importlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


def without_frames(name: str, data: PyTree) -> tuple[PyTree, Any]:
    """The same data with arrays in place of data frames and series, and the index of their rows.

    **Arguments:**

    - `name`: of the data, for errors.
    - `data`: any pytree; pandas data frames and series in it become arrays.

    **Returns:** the data, and the index of the frames (`None` if there is none).

    **Raises:** `ValueError` for columns that are not numbers, and frames whose rows are not the
    same in the same order.
    """
    index: Any = None

    def array(leaf: Any) -> Any:
        nonlocal index
        if not hasattr(leaf, "to_numpy") or not hasattr(leaf, "index"):
            return leaf
        for column, dtype in _dtypes(leaf).items():
            # Text, categories and objects; missing values of pandas' own types are objects, too.
            if getattr(dtype, "kind", "O") not in "fiub":
                raise ValueError(
                    f"{name}: column {column!r}: expected numbers, received {dtype}. Encode it "
                    "first, for instance by pandas.get_dummies or .astype('category').cat.codes."
                )
        if index is None:
            index = leaf.index
        elif len(index) != len(leaf.index) or not bool((index == leaf.index).all()):
            raise ValueError(
                f"{name}: expected data frames with the same rows in the same order, received "
                f"indices that differ ({len(index)} and {len(leaf.index)} rows). Align them first."
            )
        return np.asarray(leaf.to_numpy())

    return jax.tree.map(array, data), index


def to_frame(columns: Mapping[str, Any], index: Any = None) -> Any:
    """A pandas data frame of these columns.

    **Raises:** `ImportError` without pandas.
    """
    try:
        # By name, since pandas has no types of its own.
        pandas: Any = importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError("Data frames need pandas: pip install pandas") from error
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    return pandas.DataFrame(arrays, index=index)


def _dtypes(leaf: Any) -> dict:
    dtypes: Any = getattr(leaf, "dtypes", None)
    if hasattr(dtypes, "items"):
        return dict(dtypes.items())
    return {getattr(leaf, "name", None): leaf.dtype}
