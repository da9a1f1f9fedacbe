"""A space with fewer choices, where a process cannot tell most of them apart.

A categorical of a thousand choices is a thousand coordinates, in each of which a random place, a
step and a covariance have an entry. Yet of a choice that no trial had the process knows nothing but
that it is another one: all of those are alike, and a few of them stand for the rest.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from strategies.observation import Observation, Suggestion
from strategies.space import Categorical, SearchSpace

#: Categoricals of up to so many choices stay as they are.
_FEW = 100
#: Choices that no trial had, which stand for the others.
_DRAWN = 20


def narrowed(
    space: SearchSpace, items: Sequence[Observation | Suggestion], rng: np.random.Generator
) -> SearchSpace:
    """The space with those choices that some item has, the default, and a few drawn of the rest.

    Only for categoricals of more than a hundred choices, most of which no item has; not where some
    are likelier than others, or where the existence of another hyperparameter depends on one. A
    configuration of the narrower space is one of the space, and those of `items` are of both.

    **Returns:** The space itself if nothing can be left out.
    """
    parents = {parent for domain in space.domains.values() for parent in domain.when}
    fewer = {}
    for path, domain in space.domains.items():
        if not isinstance(domain, Categorical) or domain.size <= _FEW:
            continue
        if domain.weights is not None or path in parents:
            continue
        seen = domain.encode(domain.middle()) > 0
        for item in items:
            seen |= item.unit[space.slices[path]] > 0
        if 2 * (seen.sum() + _DRAWN) > domain.size:
            continue
        seen[rng.choice(np.flatnonzero(~seen), _DRAWN, replace=False)] = True
        fewer[path] = replace(
            domain, choices=[domain.choices[i] for i in np.flatnonzero(seen).tolist()]
        )
    if not fewer:
        return space
    return SearchSpace(space.unflatten(space.domains | fewer), constraints=space.constraints)


__all__ = ["narrowed"]
