"""All configurations of some values of every hyperparameter."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from strategies.space.search_space import Config, SearchSpace


def combinations(space: SearchSpace, values: Callable[[str], Iterable[Any]]) -> Iterator[Config]:
    """Every allowed combination, each once: what is inactive does not multiply them.

    **Arguments:**

    - `values`: the canonical values of a path.
    """

    def extend(flat: dict[str, Any], depth: int) -> Iterator[Config]:
        if depth == len(space.order):
            config = space.unflatten({path: flat[path] for path in space.domains if path in flat})
            if space.feasible(config):
                yield config
            return
        path = space.order[depth]
        if not space.is_active(path, flat):
            yield from extend(flat, depth + 1)
            return
        for value in values(path):
            yield from extend({**flat, path: value}, depth + 1)

    return extend({}, 0)
