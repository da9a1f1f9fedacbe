"""A search space as a tree of decisions: each answer may open further questions.

DeepArchitect's view of a space (Negrinho & Gordon 2017): a configuration is the list of the
answers to one question after another, and the question that comes next depends on the answers so
far. Here the questions are the coordinates of the active hyperparameters, in the order of
`SearchSpace.order`, and the answers are *cells*: choices, values, or intervals of a coordinate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strategies.space import Categorical, Domain, SearchSpace

#: An answer: path, coordinate, and the cells from the first up to the one after the last.
Move = tuple[str, int, int, int]

# Places of a coordinate at which its values are asked for.
_PROBES = 1024


@dataclass(frozen=True)
class Cells:
    """What one question can be answered with.

    - `low`, `high`: the ends of each cell in the coordinate; the place of a categorical's choice.
    - `ordered`: whether neighbours are alike, so that cells can be halved.
    """

    low: np.ndarray
    high: np.ndarray
    ordered: bool

    def __len__(self) -> int:
        return len(self.low)

    def place(self, coordinate: float) -> int:
        """The cell that holds a coordinate."""
        # The ends of the cells of a grid are values; rounding must not move one out of its own.
        found = int(np.searchsorted(self.low, coordinate + 1e-9, side="right")) - 1
        return min(max(found, 0), len(self) - 1)


def _cells(domain: Domain, coordinate: int, most: int) -> Cells:
    if isinstance(domain, Categorical):
        likely = np.ones(len(domain.choices)) if domain.weights is None else domain.weights
        places = np.flatnonzero(np.asarray(likely) > 0).astype(float)
        return Cells(places, places, ordered=False)
    if domain.differentiable:
        edges = np.linspace(0.0, 1.0, most + 1)
        return Cells(edges[:-1], edges[1:], ordered=True)
    probes = np.full((_PROBES, domain.size), 0.5)
    probes[:, coordinate] = (np.arange(_PROBES) + 0.5) / _PROBES
    values = np.unique(np.round(domain.snap(probes)[:, coordinate], 12))
    if len(values) <= most:
        return Cells(values, values, ordered=True)
    # No cell is empty: one that nothing falls into would be tried for ever.
    block = np.minimum((values * most).astype(int), most - 1)
    blocks = [values[block == number] for number in np.unique(block)]
    return Cells(
        np.array([part[0] for part in blocks]), np.array([part[-1] for part in blocks]), True
    )


class Decisions:
    """The questions of a space.

    **Arguments:**

    - `space`: any search space.
    - `cells`: answers at most to a question about an ordered coordinate: more values share cells.
    - `bisection`: ask for one half of the cells again and again instead of for a cell.
    """

    def __init__(self, space: SearchSpace, cells: int, bisection: bool):
        self.space, self.bisection = space, bisection
        self.cells: dict[str, list[Cells]] = {}
        for path, domain in space.domains.items():
            if domain.tunable:
                asked = 1 if isinstance(domain, Categorical) else domain.size
                self.cells[path] = [_cells(domain, i, cells) for i in range(asked)]

    def moves(
        self, flat: Mapping[str, Any], pick: Callable[[Sequence[Move], Move], bool] | None = None
    ) -> list[Move]:
        """The answers that give a configuration, of paths to values, in order.

        **Arguments:**

        - `pick`: is told the possible answers and the given one; `False` ends the list.
        """
        made: list[Move] = []

        def given(options: Sequence[Move]) -> Move | None:
            path, coordinate, *_ = options[0]
            at = self._place(path, coordinate, flat[path])
            move = next(option for option in options if option[2] <= at < option[3])
            if pick is not None and not pick(options, move):
                return None
            made.append(move)
            return move

        for path in self.space.order:
            if path in flat and path in self.cells:
                for coordinate in range(len(self.cells[path])):
                    first, last = self._narrowed(path, coordinate, given)
                    if last - first > 1:
                        return made
        return made

    def grow(
        self, choose: Callable[[Sequence[Move]], Move | None], rng: np.random.Generator
    ) -> dict[str, Any]:
        """A configuration from answers; what `choose` leaves open (`None`) is drawn."""

        def value(path: str) -> Any:
            domain = self.space.domains[path]
            asked = self.cells.get(path, [])
            ranges = [self._narrowed(path, i, choose) for i in range(len(asked))]
            pairs = list(zip(ranges, asked, strict=True))
            if all(last - first == len(cells) for (first, last), cells in pairs):
                return domain.draw(rng.random(domain.uniforms))
            if isinstance(domain, Categorical):
                return domain.choices[int(asked[0].low[ranges[0][0]])]
            ends = [(cells.low[first], cells.high[last - 1]) for (first, last), cells in pairs]
            low, high = np.array(ends).T
            return domain.decode(low + (high - low) * rng.random(len(ends)))

        return self.space.unflatten(self.space.active(value))

    def _narrowed(
        self, path: str, coordinate: int, choose: Callable[[Sequence[Move]], Move | None]
    ) -> tuple[int, int]:
        """The first cell that is left, and the one after the last."""
        cells = self.cells[path][coordinate]
        first, last = 0, len(cells)
        while last - first > 1:
            if self.bisection and cells.ordered:
                middle = (first + last + 1) // 2
                ends = [(first, middle), (middle, last)]
            else:
                ends = [(at, at + 1) for at in range(first, last)]
            move = choose([(path, coordinate, *pair) for pair in ends])
            if move is None:
                break
            first, last = move[2:]
        return first, last

    def _place(self, path: str, coordinate: int, value: Any) -> int:
        domain, cells = self.space.domains[path], self.cells[path][coordinate]
        if isinstance(domain, Categorical):
            return cells.place(float(domain.index(value)))
        return cells.place(float(domain.encode(value)[coordinate]))
