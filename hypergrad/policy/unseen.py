"""The guard against over-tuning a policy: other instances than those it learns from."""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Array, PyTree

from hypergrad.outer.report import StepReport
from hypergrad.policy.judge import Judgement, judge
from hypergrad.policy.step import PolicyStep
from hypergrad.problem import BilevelProblem


@dataclass
class Unseen:
    """A callback of `hypergrad.outer.run` that judges the policy on instances of its own.

    A policy can learn its instances by heart. `hparams` are those that did best here, and are what
    to use; with `patience` the run is stopped. It remembers its own process: after a resume it
    begins anew.

    **Arguments:**

    - `problem`, `step`, `params`, `inner_batch`, `outer_batch`, `stacked`, `key`: as for `judge`.
    - `patience`: stop after so many judgements without a better one. Default: never.

    **Fields:**

    - `hparams`: the best so far, `None` before the first judgement; `value`: their mean loss.
    - `history`: outer step and mean loss of each judgement.
    """

    problem: BilevelProblem
    step: PolicyStep
    params: PyTree
    inner_batch: PyTree
    outer_batch: PyTree
    stacked: bool = False
    key: Array | None = None
    patience: int | None = None
    hparams: Any = None
    value: float = float("inf")
    history: list[tuple[int, float]] = field(default_factory=list)
    _since: int = 0

    def __call__(self, report: StepReport) -> bool:
        """Judge the hyperparameters that the run has visited."""
        hparams = report.state.visited
        judged = self.judged(hparams)
        self.history.append((report.step, judged.mean))
        if self.hparams is None or judged.mean < self.value:
            self.hparams, self.value, self._since = hparams, judged.mean, 0
            return False
        self._since += 1
        return self.patience is not None and self._since >= self.patience

    def judged(self, hparams: PyTree) -> Judgement:
        """A policy on these instances."""
        return judge(
            self.problem, self.step, self.params, hparams, self.inner_batch, self.outer_batch,
            stacked=self.stacked, key=self.key,
        )  # fmt: skip
