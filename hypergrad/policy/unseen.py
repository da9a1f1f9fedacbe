"""The guard against over-tuning a policy: other instances than those it learns from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Array, PyTree

from hypergrad.outer import checkpoint
from hypergrad.outer.report import StepReport
from hypergrad.policy.judge import Judgement, judge
from hypergrad.policy.step import PolicyStep
from hypergrad.problem import BilevelProblem

_IDENTITY = {"kind": "hypergrad.policy.Unseen"}


@dataclass
class Unseen:
    """A callback of `hypergrad.outer.run` that judges the policy on instances of its own.

    A policy can learn its instances by heart. `hparams` are those that did best here, and are what
    to use; with `patience` the run is stopped.

    **Arguments:**

    - `problem`, `step`, `params`, `inner_batch`, `outer_batch`, `stacked`, `key`: as for `judge`.
    - `patience`: stop after so many judgements without a better one. Default: never.
    - `file`: where the best and the history are kept, beside the run's `checkpoint`: a run that is
      resumed then goes on with what was best before. Default: nowhere; a resumed run begins anew.

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
    file: str | Path | None = None
    hparams: Any = None
    value: float = float("inf")
    history: list[tuple[int, float]] = field(default_factory=list)
    _since: int = 0
    _best_at: int | None = None

    def __call__(self, report: StepReport) -> bool:
        """Judge the hyperparameters that the run has visited.

        **Raises:** `hypergrad.outer.CheckpointError` for a `file` of other hyperparameters.
        """
        hparams = report.state.visited
        self._resume(hparams, report.step)
        judged = self.judged(hparams)
        self.history.append((report.step, judged.mean))
        self._since += 1
        if self.hparams is None or judged.mean < self.value or report.step == self._best_at:
            self.hparams, self.value, self._since = hparams, judged.mean, 0
            self._best_at = report.step
        if self.file is not None:
            checkpoint.save(Path(self.file), self.hparams, _IDENTITY, {"history": self.history})
        return self.patience is not None and self._since >= self.patience

    def judged(self, hparams: PyTree) -> Judgement:
        """What `judge` says of a policy on these instances."""
        return judge(
            self.problem, self.step, self.params, hparams, self.inner_batch, self.outer_batch,
            stacked=self.stacked, key=self.key,
        )  # fmt: skip

    def _resume(self, like: PyTree, step: int) -> None:
        """Take up what the file holds of the steps before this one, if nothing was judged yet."""
        if self.file is None or self.history or not checkpoint.exists(Path(self.file)):
            return
        hparams, kept = checkpoint.load(Path(self.file), like, _IDENTITY)
        history = [(at, value) for at, value in kept["history"]]
        before = [item for item in history if item[0] < step]
        if not before:  # the file is of an earlier run
            return
        # What was judged after the run's last checkpoint is visited, and judged, once more.
        self.hparams, self.history = hparams, before
        self._best_at, self.value = min(history, key=_value)
        self._since = before[::-1].index(min(before, key=_value))


def _value(item: tuple[int, float]) -> float:
    return item[1]
