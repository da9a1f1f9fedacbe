"""What every bandit is: a searcher that plays its arms again and again, each on a new instance.

A searcher looks for one good configuration. A bandit pays for every choice: its observations are
losses of one instance each, and what counts is their sum.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from strategies.arguments import finite, nonnegative, positive
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.space import SearchSpace
from strategies.space.combinations import combinations

#: More arms than can be told apart by playing them.
_MOST = 10_000
#: Rounds after which what is still pending counts as failed, until it is told.
_LATE = 20


#: Arm, loss above the lowest, and where both come from.
Round = tuple[int, float, Observation | Suggestion]


class Learner(ABC):
    """What a bandit makes of the rounds so far. It is filled, drawn from, and thrown away.

    Losses are counted from the lowest one that there can be.
    """

    @abstractmethod
    def learn(self, arm: int, loss: float, probability: float, context: float | None) -> None:
        """One round: the arm played, its loss, and the probability with which it was drawn."""

    @abstractmethod
    def probabilities(self, context: float | None) -> np.ndarray:
        """Of the arms in the next round, shape `(arms,)`."""

    def draw(self, rng: np.random.Generator, context: float | None = None) -> tuple[int, float]:
        """An arm for the next round, and its probability."""
        weights = self.probabilities(context)
        arm = int(rng.choice(len(weights), p=weights))
        return arm, float(weights[arm])


class Bandit(Searcher):
    """Chooses an arm for each of a sequence of instances, from the losses of the arms it played.

    The arms are all configurations of a finite space, in its order. Each is proposed as often as it
    is worth; the observation of a suggestion is the loss of one instance. The probability of the
    arm that was drawn is in the suggestion's note, comes back with the observation, and is restored
    with the ledger; an observation without it (a point that was not suggested) teaches nothing.

    An instance that failed, or never returned and was given up (`minimize(timeout=)`), counts as
    `failed`. What is pending counts as not played at first; after twenty further rounds it counts
    as failed, too, until it is told: an arm that never returns must not look like one that costs
    nothing.

    **Arguments:**

    - `space`: finite: `Ordinal`, `Categorical`, `Int` and `Choice` only, at most 10,000 arms.
    - `seed`, `first`: as for every searcher.
    - `lowest`: the smallest loss that there can be. Default 1: a number of iterations.
    - `failed`: the loss of a failure. Default: the largest one seen, and twice `lowest` (1, if
      `lowest` is 0) at least.
    """

    #: Whether `propose` needs a context.
    contextual = False

    def __init__(
        self,
        space: SearchSpace | Mapping[str, Any],
        *,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
        lowest: float = 1.0,
        failed: float | None = None,
    ):
        super().__init__(space, seed=seed, first=first)
        domains = self.space.domains
        endless = [path for path, domain in domains.items() if domain.count == math.inf]
        if endless:
            raise ValueError(
                f"'space': expected a finite number of arms, received {endless[0]!r}, which is "
                "continuous; give its values, `Ordinal([...])`"
            )
        every = combinations(self.space, lambda path: domains[path].every())
        self.arms = tuple(islice(every, _MOST + 1))
        if not 1 <= len(self.arms) <= _MOST:
            raise ValueError(f"'space': expected 1 to {_MOST} arms, received more or none")
        self._index = {repr(arm): number for number, arm in enumerate(self.arms)}
        self.lowest = nonnegative("lowest", lowest)
        self.failed = None if failed is None else float(positive("failed", failed))
        self._last: tuple[list[Round], Any] = ([], None)

    @abstractmethod
    def learner(self) -> Learner:
        """A learner before the first round."""

    def check(self, observation: Observation) -> None:
        """A loss below the lowest one would be a gain, from which the rules do not recover.

        **Raises:** `ValueError` naming the value; nothing is recorded then.
        """
        if observation.value is not None and observation.value < self.lowest:
            raise ValueError(
                f"'value': expected a loss of at least lowest={self.lowest:g}, received "
                f"{observation.value:g}; set `lowest`, or scale the losses"
            )

    def propose(
        self,
        number: int,
        history: Sequence[Observation],
        pending: Sequence[Suggestion],
        context: float | None = None,
    ) -> Suggestion:
        """The arm for an instance: a pure function, whatever the order of its arguments.

        **Arguments:** as of every searcher, and

        - `context`: what is known of the instance: a finite number for a contextual bandit, nothing
          for others. `Ledger.ask(context)` passes it on.
        """
        context = self._number(context)
        note: dict[str, Any] = {} if context is None else {"context": context}
        if number < len(self.first):
            first = {"origin": "first", "probability": 1.0, **note}
            return self._located(Suggestion(number, self.first[number], first))
        late = [item for item in pending if item.number <= number - _LATE]
        rounds: list[Observation | Suggestion] = [*map(self._received, history), *late]
        rounds.sort(key=lambda item: item.number or 0)
        learner = self._learned(list(self._losses(rounds)))
        arm, probability = learner.draw(self.rng(number), context)
        note = {"probability": probability, **note}
        return self._located(Suggestion(number, self.arms[arm], note))

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        return self.propose(number, history, pending)

    def _learned(self, rounds: list[Round]) -> Learner:
        """A learner that has seen these rounds; the last one goes on, if it has seen the first."""
        seen, learner = self._last
        if (
            learner is None
            or len(seen) > len(rounds)
            or any(
                old[1] != new[1] or old[2] is not new[2]
                for old, new in zip(seen, rounds, strict=False)
            )
        ):
            seen, learner = [], self.learner()
        for arm, loss, item in rounds[len(seen) :]:
            learner.learn(arm, loss, item.note["probability"], item.note.get("context"))
        self._last = rounds, learner
        return learner

    def _losses(self, rounds: Sequence[Observation | Suggestion]) -> Iterable[Round]:
        """Arm, loss above the lowest, and the item of each round that was drawn."""
        drawn = [item for item in rounds if "probability" in item.note]
        values = [_value(item) for item in drawn]
        failed = self.failed
        if failed is None:
            known = [value for value in values if value is not None]
            failed = max([2 * self.lowest or 1.0, *known])
        for item, known_value in zip(drawn, values, strict=True):
            value = failed if known_value is None else known_value
            yield self._index[repr(dict(item.config))], value - self.lowest, item

    def expect_context(self, context: Any) -> None:
        """A finite number for a contextual bandit, nothing for others."""
        self._number(context)

    def _number(self, context: Any) -> float | None:
        if not self.contextual:
            if context is not None:
                raise ValueError(
                    f"'context': expected None, {type(self).__name__} has none, received "
                    f"{context!r:.80}"
                )
            return None
        scalar = getattr(context, "shape", None) == () and hasattr(context, "item")
        plain = context.item() if scalar else context
        return finite("context", plain, f"a finite number for {type(self).__name__}")


def _value(item: Observation | Suggestion) -> float | None:
    """What a round cost; `None` if it failed, or is late."""
    if isinstance(item, Suggestion) or item.status == "failed":
        return None
    return float(item.value or 0.0)


def interval(contexts: Any) -> tuple[float, float]:
    """A checked range of contexts."""
    try:
        low, high = (float(bound) for bound in contexts)
    except (TypeError, ValueError, OverflowError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"'contexts': expected (low, high) with low < high, received {contexts!r:.80}"
        )
    return low, high
