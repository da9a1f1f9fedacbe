"""How far a population is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a population is; its text fits on a line.

    - `alive`: members in lanes that have not failed.
    - `trials`: results so far, of this run.
    - `steps`: training steps of all members together, of this run.
    - `best`: the smallest value so far.
    - `seconds`: since the run began.
    - `left`: seconds to go, at the pace so far; `None` if nobody knows how much is to be done.
    """

    alive: int
    trials: int
    steps: int
    best: float | None
    seconds: float
    left: float | None

    def __str__(self) -> str:
        best = "none yet" if self.best is None else f"{self.best:.5g}"
        left = "" if self.left is None else f", {self.left:.0f} s left"
        return (
            f"{self.alive} alive, {self.trials} results, {self.steps} steps, best {best}, "
            f"{self.seconds:.0f} s{left}"
        )
