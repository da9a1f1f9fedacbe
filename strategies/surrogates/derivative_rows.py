"""What a gradient tells a Gaussian process, in as many rows as there is room for."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strategies.surrogates.gaussian_process import Rows

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


def derivative_rows(
    gradients: Sequence[Vector | None],
    errors: Sequence[float | None],
    x: Matrix,
    slope: Vector,
    room: int,
) -> tuple[Rows, Vector]:
    """Derivative rows, in the order of the points, until the room is used up."""
    width = x.shape[1]
    known = [(i, raw) for i, raw in enumerate(gradients) if raw is not None]
    entries = sum(int(np.isfinite(raw).sum()) for _, raw in known)
    at: list[int] = []
    directions: list[Vector] = []
    y: list[float] = []
    noise: list[float] = []
    for i, raw in known:
        error, gradient = errors[i], slope[i] * np.nan_to_num(raw)
        size = float(np.linalg.norm(gradient))
        if error is not None and not error < 1:
            continue
        if entries <= room:
            along = np.eye(len(raw), width)[np.isfinite(raw)]
        elif len(y) < room and size > 0:
            along = np.pad(gradient / size, (0, width - len(raw)))[None]
        else:
            continue
        spread = 0.0 if error is None else error * size / np.sqrt(np.isfinite(raw).sum())
        at += [i] * len(along)
        directions += list(along)
        y += list(along[:, : len(raw)] @ gradient)
        noise += [spread] * len(along)
    if not y:
        return Rows.values(np.empty((0, width))), np.empty(0)
    return Rows(x[at], np.array(directions), np.array(noise)), np.array(y)
