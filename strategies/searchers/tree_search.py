"""Monte-Carlo tree search over the decisions of a space (Negrinho & Gordon 2017)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from strategies.arguments import integer, positive, switch
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.searchers.decisions import Decisions, Move
from strategies.space import SearchSpace

# A configuration that constraints forbid is grown anew so many times.
_TRIES = 100


@dataclass
class _Node:
    """Answers given so far: how often, the sum of the rewards, and what was answered next."""

    visits: float = 0.0
    total: float = 0.0
    children: dict[Move, "_Node"] = field(default_factory=dict)


class TreeSearcher(Searcher):
    """Monte-Carlo tree search (UCT) over a conditional space.

    A configuration is a list of decisions, those that others depend on first. From the root, the
    search takes at each decision an answer that it has never taken, at random; where all have been
    taken, the one with the largest mean reward + `exploration` sqrt(2 log N / n) (`N` visits of the
    decision, `n` of the answer). After the first new answer everything else is drawn. Each result
    adds one node, and counts for the nodes on the way to it. The reward is the share of the other
    trials that were worse, so that the scale of the objective does not matter; 0 for what failed
    or was pruned.

    With `bisection` a decision between many ordered answers is a sequence of decisions between
    halves, so that neighbours learn from each other ("MCTS with bisection").

    The tree is rebuilt from the history for each suggestion: a thousand results take about a tenth
    of a second.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher.
    - `bisection`: halve ordered decisions.
    - `exploration`: weight of what is rarely visited. The paper's experiments use 0.5, with
      accuracies as rewards; ranks fill [0, 1], and on twelve tables 0.3 did a little better.
    - `cells`: answers at most to a decision about a number; a continuum is cut into so many
      intervals, in one of which the value is drawn.

    **Raises:** `ValueError` naming an argument that is out of range.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        bisection: bool = True,
        exploration: float = 0.3,
        cells: int = 16,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
    ):
        super().__init__(space, seed=seed, first=first)
        self.bisection = switch("bisection", bisection)
        self.exploration = positive("exploration", exploration)
        self.cells = integer("cells", cells, 2)
        self._decisions = Decisions(self.space, self.cells, self.bisection)

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        rng = self.rng(number)
        rewards = ranked(history)
        root = _Node()
        # What is pending counts as average: its answers are visited, and others get their turn.
        known = [*zip(history, rewards, strict=True), *((item, 0.5) for item in pending)]
        for item, reward in known:
            self._add(root, located(item), float(reward))
        for _ in range(_TRIES):
            config, depth = self._grown(root, rng)
            if self.space.feasible(config):
                break
        return Suggestion(number, config, {"depth": depth})

    def _add(self, root: _Node, flat: Mapping[str, Any], reward: float) -> None:
        way, new = [root], False

        def step(options: Sequence[Move], move: Move) -> bool:
            nonlocal new
            if new:
                return False
            new = move not in way[-1].children
            way.append(way[-1].children.setdefault(move, _Node()))
            return True

        self._decisions.moves(flat, step)
        for node in way:
            node.visits += 1.0
            node.total += reward

    def _grown(self, root: _Node, rng: np.random.Generator) -> tuple[dict[str, Any], int]:
        """A configuration, and how many of its decisions were not left to chance."""
        node: _Node | None = root
        depth = 0

        def choose(options: Sequence[Move]) -> Move | None:
            nonlocal node, depth
            if node is None:
                return None
            depth += 1
            fresh = [option for option in options if option not in node.children]
            if fresh:
                node = None
                return fresh[int(rng.integers(len(fresh)))]
            scores = [self._score(node, node.children[option]) for option in options]
            best = np.flatnonzero(np.array(scores) == max(scores))
            move = options[int(rng.choice(best))]
            node = node.children[move]
            return move

        return self._decisions.grow(choose, rng), depth

    def _score(self, parent: _Node, child: _Node) -> float:
        wide = math.sqrt(2.0 * math.log(parent.visits) / child.visits)
        return child.total / child.visits + self.exploration * wide


def located(item: Any) -> Mapping[str, Any]:
    """Paths to values of what `propose` hands over, which was checked."""
    assert item.point is not None
    return item.point.flat


def ranked(history: Sequence[Observation]) -> NDArray[np.float64]:
    """For each observation the share of the others that are worse, ties by half: in [0, 1]."""
    values = [
        math.inf if item.status != "complete" or item.value is None else item.value
        for item in history
    ]
    if len(values) < 2:
        return np.full(len(values), 0.5)
    rewards = (len(values) - rankdata(values)) / (len(values) - 1)
    return np.where(np.isinf(values), 0.0, rewards)
