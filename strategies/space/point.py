"""A configuration that was checked, in all its forms."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from strategies.space.search_space import SearchSpace


def copied(tree: Any) -> Any:
    """A configuration that may be changed: new dicts and lists around the same values."""
    if isinstance(tree, dict):
        return {key: copied(item) for key, item in tree.items()}
    return [copied(item) for item in tree] if isinstance(tree, list) else tree


class Point:
    """A valid configuration of a space, so that nobody needs to check or to encode it again.

    Made by `SearchSpace.point`; the methods of that space take it in place of a configuration.

    - `space`: where it is valid.
    - `config`: the nested configuration, canonical.
    - `flat`: paths to the same values, in the order of the space.
    """

    def __init__(self, space: "SearchSpace", flat: Mapping[str, Any]) -> None:
        self.space = space
        self.flat: Mapping[str, Any] = MappingProxyType(dict(flat))
        self.config = space.unflatten(self.flat)

    @functools.cached_property
    def unit(self) -> np.ndarray:
        """Unit coordinates, shape `(space.dimension,)`, read-only; see `SearchSpace.encode`."""
        vector = self.space.rest.copy()
        for path, value in self.flat.items():
            vector[self.space.slices[path]] = self.space.domains[path].encode(value)
        vector.flags.writeable = False
        return vector

    def __reduce__(self) -> Any:
        # The space may hold functions that cannot be pickled, and decides whether this is valid.
        raise TypeError("a Point belongs to its process; pickle its config")
