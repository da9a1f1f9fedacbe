"""A pool of processes like another."""

import inspect
from concurrent.futures import Executor
from operator import attrgetter
from typing import Any

#: Where a pool keeps an argument `NAME` of its own: the standard library and loky as `_NAME`, loky
#: (3.6) others by name or in its queues.
_PLACES = {
    "job_reducers": "_call_queue._reducers",
    "result_reducers": "_result_queue._reducers",
    "executor_id": "executor_id",
}


def pool_like(pool: Executor) -> Executor | None:
    """A new pool, made as one that has died was made: by what that keeps of its arguments.

    `None` if it has no processes, or does not keep them all.
    """
    if not hasattr(pool, "_processes"):
        return None
    arguments: dict[str, Any] = {}
    for parameter in inspect.signature(type(pool)).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return None
        try:
            place = _PLACES.get(parameter.name, f"_{parameter.name}")
            arguments[parameter.name] = attrgetter(place)(pool)
        except AttributeError:
            return None
    return type(pool)(**arguments)
