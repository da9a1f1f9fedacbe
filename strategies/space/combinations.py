"""All combinations of values of the hyperparameters."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from strategies.space.search_space import Config, SearchSpace


def assignments(
    space: SearchSpace, paths: Sequence[str], values: Callable[[str], Iterable[Any]]
) -> Iterator[dict[str, Any]]:
    """Every combination of some hyperparameters, by path, each once: the inactive are left out.

    **Arguments:**

    - `paths`: of these, parents first.
    - `values`: the canonical values of a path.
    """

    def extend(flat: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
        if depth == len(paths):
            yield flat
            return
        path = paths[depth]
        if not space.is_active(path, flat):
            yield from extend(flat, depth + 1)
            return
        for value in values(path):
            yield from extend({**flat, path: value}, depth + 1)

    return extend({}, 0)


def combinations(space: SearchSpace, values: Callable[[str], Iterable[Any]]) -> Iterator[Config]:
    """Every allowed configuration of some values of every hyperparameter, each once."""
    for flat in assignments(space, space.order, values):
        config = space.unflatten({path: flat[path] for path in space.domains if path in flat})
        if space.feasible(config):
            yield config
