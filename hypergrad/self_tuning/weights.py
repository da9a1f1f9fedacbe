"""The weights of self-tuning models, in two parts: base and response."""

import equinox as eqx
import jax
from jaxtyping import Array, Bool, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.problem import BilevelProblem
from hypergrad.residual import residual_scale
from hypergrad.self_tuning.convert import respond, response_spec
from hypergrad.self_tuning.gating import is_self_tuning


class Weights(eqx.Module):
    """The parts of `params`, each with `None` in the places of the others.

    - `base`: the weights at no response input.
    - `response`: what they change by, `W'`, `b'` and `V` of every layer.
    - `rest`: what is not trained.
    """

    base: PyTree
    response: PyTree
    rest: PyTree

    @staticmethod
    def of(params: PyTree) -> "Weights":
        """The parts of a model, at no response input."""
        params = respond(params, None)
        response, rest = eqx.partition(params, response_spec(params))
        base, rest = eqx.partition(rest, eqx.is_inexact_array)
        return Weights(base, response, rest)

    def params(self, base: PyTree, response: PyTree) -> PyTree:
        """The model with these weights."""
        return eqx.combine(base, response, self.rest)

    def stationarity(
        self, problem: BilevelProblem, hparams: PyTree, batch: PyTree, key: Array
    ) -> tuple[Scalar, Scalar]:
        """Norm of the inner loss's gradient in the base weights, and what it is compared with."""

        def loss(base: PyTree) -> Scalar:
            return problem.inner_loss(self.params(base, self.response), hparams, batch, key)[0]

        return residual_scale(jax.grad(loss), self.base)


def gates_finite(response: PyTree) -> Bool[Array, ""]:
    """Whether all gates of a tree like `Weights.response` are finite."""
    nodes = jax.tree.leaves(response, is_leaf=is_self_tuning)
    return vector.all_finite([node.gate for node in nodes if is_self_tuning(node)])
