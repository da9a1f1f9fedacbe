"""A bilevel problem restricted to what is differentiated.

Pytrees of parameters and hyperparameters hold more than floating-point arrays: step counts,
activation functions, names. Here the losses are functions of the floating-point arrays alone, `w`
of the parameters and `h` of the hyperparameters, with everything else held fixed.
"""

from collections.abc import Callable
from dataclasses import replace

import equinox as eqx
import jax
from jaxtyping import Array, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.problem import BilevelProblem
from hypergrad.programs import parts

Slope = Callable[[PyTree, PyTree, PyTree], Scalar]


class RestrictedProblem(eqx.Module):
    """A problem at a point, as functions of the differentiable parts `w` and `h`.

    Every method takes `w` and `h`; where one is left out it is the point's own. `None` in place of
    a leaf stands for what is not differentiated, as in `equinox.filter`.

    **Arguments:**

    - `problem`: the two losses.
    - `params`, `hparams`: the point, any pytrees.
    - `inner_batch`, `outer_batch`: the data of the inner and of the outer loss.
    - `key`: for stochastic problems.
    """

    problem: BilevelProblem
    params: PyTree
    hparams: PyTree
    inner_batch: PyTree = None
    outer_batch: PyTree = None
    key: Array | None = None

    @property
    def w(self) -> PyTree:
        """The differentiable part of `params`."""
        return eqx.filter(self.params, eqx.is_inexact_array)

    @property
    def extra(self) -> tuple:
        """The key as last argument of a stochastic problem's functions; empty for others."""
        return (self.key,) if self.problem.stochastic else ()

    @property
    def inner_arguments(self) -> tuple[BilevelProblem, PyTree, PyTree, PyTree]:
        """Problem, params, hyperparameters and inner batch: what inner solvers are given."""
        return self.problem, self.params, self.hparams, self.inner_batch

    @property
    def arguments(self) -> tuple:
        """All that makes up the problem at this point."""
        return (*self.inner_arguments, self.outer_batch, self.key)

    @property
    def h(self) -> PyTree:
        """The differentiable part of `hparams`."""
        return eqx.filter(self.hparams, eqx.is_inexact_array)

    def traced(self) -> "RestrictedProblem":
        """The same with losses traced once; see `BilevelProblem.traced`."""
        problem, *arguments = self.arguments
        return replace(self, problem=problem.traced(*arguments))

    def params_at(self, w: PyTree = None) -> PyTree:
        """`params` with `w` in place of its differentiable part."""
        return self.params if w is None else _replaced(self.params, w)

    def hparams_at(self, h: PyTree = None) -> PyTree:
        """`hparams` with `h` in place of its differentiable part."""
        return self.hparams if h is None else _replaced(self.hparams, h)

    def inner_loss(self, w: PyTree = None, h: PyTree = None) -> Scalar:
        """`f(w, h)`."""
        point = (self.params_at(w), self.hparams_at(h))
        return self.problem.inner_loss(*point, self.inner_batch, self.key)[0]

    def outer_loss(self, w: PyTree = None, h: PyTree = None) -> Scalar:
        """`F(w, h)`."""
        return self.outer_loss_and_aux(w, h)[0]

    def outer_loss_and_aux(self, w: PyTree = None, h: PyTree = None) -> tuple[Scalar, PyTree]:
        """`F(w, h)` and the auxiliary output of the outer loss."""
        point = (self.params_at(w), self.hparams_at(h))
        return self.problem.outer_loss(*point, self.outer_batch, self.key)

    def residual(self, w: PyTree = None, h: PyTree = None) -> PyTree:
        """`∂f/∂w`, or the optimality map: what vanishes at the inner solution."""
        point = (self.params_at(w), self.hparams_at(h))
        value = self.problem.residual(*point, self.inner_batch, self.key)
        return eqx.filter(value, eqx.is_inexact_array)

    def directional_derivative(self) -> Slope:
        """The function `(w, h, q) -> ⟨∂f/∂w(w, h), q⟩`.

        Its gradient in `h` is the cross product `(∂²f/∂w∂h)ᵀ q`, that in `w` the product `H q` with
        the Hessian (for an optimality map with its transposed Jacobian), that in `q` the residual.
        """
        if self.problem.optimality is None:
            program = jax.make_jaxpr(self.inner_loss)(self.w, self.h).jaxpr
            if not reverse_only(program):
                # A derivative in forward mode, which costs no backward pass; of the two orders of
                # differentiation this makes the cross product the cheaper.
                return lambda w, h, q: jax.jvp(lambda w: self.inner_loss(w, h), (w,), (q,))[1]
        return lambda w, h, q: vector.vdot(self.residual(w, h), q)


def _replaced(tree: PyTree, part: PyTree) -> PyTree:
    return eqx.combine(part, eqx.filter(tree, eqx.is_inexact_array, inverse=True))


def reverse_only(program: jax.extend.core.Jaxpr) -> bool:
    """Whether a traced program has a `jax.custom_vjp` inside, and so no forward derivative."""
    return any(
        eqn.primitive.name.startswith("custom_vjp") or any(map(reverse_only, parts(eqn)))
        for eqn in program.eqns
    )
