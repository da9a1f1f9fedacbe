"""Problems that are made for an estimator of their own, for the doctor."""

from typing import Any

from jaxtyping import PyTree

from hypergrad.envelope import Envelope, ValueProblem
from hypergrad.estimator import Estimator
from hypergrad.evidence import Bound, EvidenceProblem, Exact, LaplaceEvidence, Linearised, Subsets
from hypergrad.gaussian_process import Gaussian, GPProblem, MarginalLikelihood, VariationalGP
from hypergrad.policy import InstancesProblem, OverInstances
from hypergrad.problem import BilevelProblem
from hypergrad.sampling import SamplingProblem
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
