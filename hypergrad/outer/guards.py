"""When a run ends, and what it warns of: pure functions of its history."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
from jaxtyping import PyTree

from hypergrad.compiled import InaccurateHypergradientWarning
from hypergrad.outer.base import STOPS
from hypergrad.outer.report import Row

# So many steps in a row along hypergradients that are not to be trusted call for a word: fewer are
# usual where the inner parameters start far from their solution.
UNTRUSTED_STEPS = 10
# The share of the first hypergradient below which errors are of no consequence.
NEGLIGIBLE = 0.01


class OverTuningWarning(UserWarning):
    """The validation loss falls while the loss on held-out data rises."""


@dataclass(frozen=True)
class StoppingRules:
    """When a run is finished; see `hypergrad.outer.run`."""

    tol: float | None
    patience: int | None
    min_delta: float

    def status(self, history: Sequence[Row]) -> str:
        """Why the run is finished after the last row, "steps" if it is not."""
        if not history:
            return "steps"
        row = history[-1]
        if row["stop"] in STOPS:
            return STOPS[int(row["stop"])]
        if self.tol is not None and is_stationary(row, self.tol):
            return "stationary"
        if self.patience is not None and self._stalled(history, self.patience):
            return "patience"
        return "steps"

    def _stalled(self, history: Sequence[Row], patience: int) -> bool:
        step, value = 0, math.inf
        for row in history:
            if row["validation"] < value - self.min_delta:
                step, value = int(row["step"]), row["validation"]
        return len(history) - step >= patience


def is_stationary(row: Row, tol: float) -> bool:
    """Whether `‖λ − P(λ − p)‖ <= tol`, as far as the error of `p` lets one say so.

    A hypergradient of zero whose error is not known to be small proves nothing: at a saddle of the
    inner loss it is zero wherever the outer loss falls. The projection does not lengthen, so that
    the true measure exceeds the computed one by the error of `p` at most.
    """
    bound = row["stationarity"] + row["error"] * row["hypergradient_norm"]
    known = math.isnan(row["error"]) or row["error"] <= 1 or bound <= tol
    return known and row["stationarity"] <= tol


def untrusted(history: Sequence[Row], *, ended: bool) -> Row | None:
    """The last row, if no recent hypergradient whose error is known is larger than its error.

    Errors that are small against the first hypergradient do not count: near a stationary point
    every relative error becomes large.
    """
    last = [row for row in history[-UNTRUSTED_STEPS:] if not math.isnan(row["error"])]
    small = NEGLIGIBLE * history[0]["hypergradient_norm"]
    wrong = [r["error"] > 1 and not r["error"] * r["hypergradient_norm"] <= small for r in last]
    enough = ended or len(history) >= UNTRUSTED_STEPS
    return last[-1] if enough and last and all(wrong) else None


def warn_untrusted(row: Row) -> None:
    """Say that the hypergradients are not to be trusted, and what the hyperparameters do."""
    moving = "the hyperparameters may be moving the wrong way"
    consequence = moving if row["accepted"] else "no step is taken along it"
    warnings.warn(
        f"The estimated error of the hypergradient exceeds its norm (error {row['error']:.2g} at "
        f"step {row['step']}, inner residual {row['inner_residual']:.2g}, linear residual "
        f"{row['linear_residual']:.2g}): {consequence}. Solve "
        "the inner problem or the linear system further: does the estimator have a solver, enough "
        "steps, a step size that converges? With Metasmooth: is the training smooth over such "
        "steps?",
        InaccurateHypergradientWarning,
        stacklevel=3,
    )


def is_overtuned(turn: Row, row: Row, margin: float) -> bool:
    """Whether the held-out loss has risen since the row `turn`, and the validation loss fallen."""
    risen = row["holdout"] - turn["holdout"] > margin * abs(turn["holdout"])
    fallen = turn["validation"] - row["validation"] > margin * abs(turn["validation"])
    return risen and fallen


def warn_overtuning(turn: Row, row: Row, hparams: PyTree) -> None:
    """Say that the hyperparameters fit the validation set."""
    count = sum(x.size for x in jax.tree.leaves(eqx.filter(hparams, eqx.is_inexact_array)))
    warnings.warn(
        f"Over-tuning: since step {turn['step']} the validation loss fell from "
        f"{turn['validation']:.4g} to {row['validation']:.4g} while the held-out loss rose from "
        f"{turn['holdout']:.4g} to {row['holdout']:.4g}. {count} hyperparameters are fitting the "
        "validation set; `Result.holdout_best` is the point before.",
        OverTuningWarning,
        stacklevel=3,
    )
