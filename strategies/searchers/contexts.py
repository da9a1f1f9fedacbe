"""What is known of a task before it is tuned: contexts, for searchers that learn across tasks.

A Gaussian process over contexts and configurations together (Krause & Ong, "Contextual Gaussian
process bandit optimization", NeurIPS 2011; for tuning by a bandit over instances: METALIC) makes
the results of one task tell of the next, the more the closer the two are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Item
from strategies.space import Point, SearchSpace
from strategies.surrogates.geometry import geometry


@dataclass(frozen=True)
class Contexts:
    """A space of contexts, and where they are kept: in the note of suggestion and observation.

    - `space`: of the contexts.
    - `groups`, `stretch`: of its unit coordinates, see `strategies.surrogates.geometry`.
    """

    space: SearchSpace
    groups: NDArray[np.intp]
    stretch: NDArray[np.float64]

    @classmethod
    def of(cls, space: SearchSpace | Mapping[str, Any]) -> "Contexts":
        """Of a space, or the mapping that makes one.

        **Raises:** `ValueError` for what makes none.
        """
        if not isinstance(space, SearchSpace | Mapping):
            raise ValueError(f"'context': expected a SearchSpace, received {space!r:.80}")
        space = SearchSpace.of(space)
        return cls(space, *geometry(space))

    def point(self, context: Any) -> Point:
        """A context, checked.

        **Raises:** `ValueError` naming the key, what was expected and what was received.
        """
        if not isinstance(context, Mapping):
            raise ValueError(
                f"'context': expected a mapping with {list(self.space.domains)}, received "
                f"{'nothing' if context is None else repr(context)[:80]}"
            )
        try:
            return self.space.point_from_json(context)
        except ValueError as error:
            raise ValueError(f"'context': {error}") from None

    def known(self, item: Observation | Suggestion) -> Point:
        """That of an observation or suggestion; raises as `point` does."""
        return self.point(item.note.get("context"))

    def knows(self, item: Observation | Suggestion) -> bool:
        """Whether an observation or suggestion has a context of this space."""
        try:
            self.known(item)
        except ValueError:
            return False
        return True

    def columns(self, points: Sequence[Point]) -> NDArray[np.float64]:
        """What a kernel sees of contexts, `(n, dimension)`."""
        return np.stack([point.unit for point in points]) * self.stretch

    def same(self, items: Iterable[Item], context: Any) -> list[Item]:
        """Those of some items that are of a context; what has none is of no context."""
        wanted = self.point(context).config
        return [item for item in items if self.knows(item) and self.known(item).config == wanted]


def task_levels(values: NDArray[np.float64], task: NDArray[np.intp]) -> NDArray[np.float64]:
    """What the values of a task have in common, for each value: a random effect of the task.

    Tasks differ by far more than their configurations do, by things that no context tells (the luck
    of a split), and none of it says which configuration is best. The means of the tasks are shrunk
    by how they vary against what varies within (Searle, Casella & McCulloch, Variance components,
    1992, section 3.4).

    **Arguments:**

    - `values`: `(n,)`, what a process of contexts and configurations does not explain.
    - `task`: `(n,)`, the number of each value's task, from 0.
    """
    count = np.bincount(task)
    mean = np.bincount(task, values) / count
    freedom = max(len(values) - len(count), 1)
    within = float(np.sum((values - mean[task]) ** 2)) / freedom
    between = max(float(mean.var()) - within * float(np.mean(1.0 / count)), 1e-12)
    return np.asarray((mean * count * between / (count * between + within + 1e-300))[task])
