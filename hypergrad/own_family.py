"""Problems of a kind of their own, for the doctor: their estimator, or what to know of them."""

from typing import Any

from jaxtyping import PyTree

from hypergrad.envelope import Envelope, ValueProblem
from hypergrad.estimator import Estimator
from hypergrad.evidence import Bound, EvidenceProblem, Exact, LaplaceEvidence, Linearised, Subsets
from hypergrad.gaussian_process import Gaussian, GPProblem, MarginalLikelihood, VariationalGP
from hypergrad.implicit.optimality import KKT
from hypergrad.implicit.reduced import Reduced
from hypergrad.policy import InstancesProblem, OverInstances
from hypergrad.problem import BilevelProblem
from hypergrad.risk import GCV, SURE
from hypergrad.sampling import SamplingProblem
from hypergrad.stateful import Stateful
from hypergrad.unrolled import Unrolled

#: Rows of a matrix whose Cholesky factor takes a fraction of a second.
_ROWS = 2000


def own_family(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    batch: PyTree,
    solver: Any,
    update: Any,
    steps: int | None,
) -> tuple[str, str, Estimator | None, str] | None:
    """Family, reason, estimator and note, or `None` for a plain bilevel problem."""
    if isinstance(problem, InstancesProblem):
        reason = "constant over many trainings: the mean of their hypergradients"
        if update is None or steps is None:
            note = "pass `update` (a PolicyStep) and `steps`: each instance is trained and unrolled"
            return "instances", reason, None, note
        note = "clip, if trainings at the edge of stability are to be followed"
        return "instances", reason, OverInstances(Unrolled(update, steps)), note
    if isinstance(problem, EvidenceProblem):
        network = Linearised(problem.model, params, hparams, batch)
        affordable = min(network.weights, network.examples * network.outputs) <= _ROWS
        size = min(max(1, _ROWS // network.outputs), network.examples)
        bound: Bound = Exact() if affordable else Subsets(size, draws=1)
        note = (
            "the exact log determinant is affordable"
            if affordable
            else f"random subsets of {size} examples: the exact log determinant is too dear"
        )
        reason = "judged by the evidence of the training data; no validation data are needed"
        return "evidence", reason, LaplaceEvidence(solver, bound), note
    if isinstance(problem, GPProblem):
        reason = "judged by the evidence of the training data; no validation data are needed"
        if isinstance(problem.likelihood, Gaussian):
            return "sites", reason, MarginalLikelihood(), "Gaussian noise: the evidence is exact"
        return "sites", reason, VariationalGP(), "variational sites, the evidence of EP at them"
    if isinstance(problem, ValueProblem):
        reason = "the outer loss is the inner one, up to its sign: no linear solve is needed"
        return "envelope", reason, Envelope(solver), problem.advice
    if isinstance(problem, SamplingProblem):
        return (
            "sampling",
            "the inner solution is a distribution: one covariance gives the derivative",
            None,
            "pass ImplicitDiffusion(Langevin(step)) with a step below 2 / L, L the largest "
            "curvature of the potential",
        )
    return None


def remarks(problem: BilevelProblem) -> list[str]:
    """What to know of a problem whose estimator is the usual one, but which is of another kind."""
    found = []
    if problem.stochastic:
        found.append(
            "the losses have noise: a gradient of one key is of one draw, and its error is not "
            "known; OverKeys(estimator, keys) estimates it from several"
        )
    if isinstance(problem, SURE | GCV):
        found.append(
            "the outer loss estimates the risk: both batches are the data, and no validation data "
            "are needed; the error of its random probes is not in info.error"
        )
    if isinstance(problem.optimality, Stateful):
        found.append(
            "the inner loss renews a state that is not trained: OptaxSolver and unrolling carry "
            "it, and the linear solve is for both"
        )
    if isinstance(problem.optimality, KKT):
        found.append(
            "the inner problem has constraints: params hold the multipliers, Newton() is an "
            "active-set method for them, and where an inequality is just met without a multiplier "
            "the derivative is that of one side"
        )
    if isinstance(problem.inner, Reduced):
        found.append(
            "the inner loss is a bilevel problem itself: each of its products is a hypergradient's "
            "derivative, so solve the lowest level to a small residual"
        )
    return found
