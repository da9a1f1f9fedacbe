"""Configurations grouped by the hyperparameters that change shapes."""

import math
from collections.abc import Sequence
from typing import Any

from strategies.arguments import several
from strategies.space import Int, Point, SearchSpace
from strategies.space.choices import Listed

#: A program for each value is compiled: nobody means more than this many.
_MOST = 64


def checked(space: SearchSpace, buckets: Sequence[str]) -> tuple[str, ...]:
    """The paths of hyperparameters that change shapes, parents first.

    **Raises:** `ValueError` for one that the space does not have, or that has too many values.
    """
    buckets = several("buckets", buckets, "a list of names")
    for path in buckets:
        if not isinstance(path, str) or path not in space.domains:
            raise ValueError(
                f"'buckets': expected keys of {list(space.domains)}, received {path!r}"
            )
    if math.prod(space.domains[path].count for path in buckets) > _MOST:
        raise ValueError(
            f"'buckets': expected at most {_MOST} combinations of values, a program for each, "
            f"received more: {', '.join(f'{path} is {space.domains[path]}' for path in buckets)}"
        )
    return tuple(path for path in space.order if path in buckets)


def key_of(point: Point, buckets: Sequence[str]) -> tuple[Any, ...]:
    """Which bucket a configuration belongs to."""
    return tuple(repr(point.flat[path]) if path in point.flat else None for path in buckets)


def examples(space: SearchSpace, buckets: Sequence[str]) -> dict[tuple[Any, ...], Point]:
    """One configuration of each bucket.

    **Raises:** `ValueError` if the configurations of a bucket have different hyperparameters.
    """
    partial: list[dict[str, Any]] = [{}]
    for path in buckets:
        domain = space.domains[path]
        if not isinstance(domain, Listed | Int):
            raise ValueError(f"'buckets': expected values that can be listed, {path!r} is {domain}")
        partial = [
            extended
            for given in partial
            for extended in (
                [{**given, path: value} for value in domain.every()]
                if path in space.point(space.complete(given)).flat
                else [given]
            )
        ]
    points = [space.point(space.complete(given)) for given in partial]
    found = {key_of(point, buckets): point for point in points}
    for path, domain in space.domains.items():
        for parent in domain.when:
            if parent not in buckets:
                raise ValueError(
                    f"'buckets': expected {parent!r} among them, as it decides whether there is "
                    f"{path!r}; received {list(buckets)}"
                )
    return found
