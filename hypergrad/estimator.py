"""The three verbs that every family of hypergradient answers, and what they return."""

import functools
import inspect
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.arguments import as_arrays, check_call
from hypergrad.expected import received
from hypergrad.linear import vector
from hypergrad.outcome import Outcome, broke_down, met_nonpositive_curvature
from hypergrad.problem import BilevelProblem

# Without an estimate, residuals up to these are taken for solved.
INNER_SOLVED = 1e-2
LINEAR_SOLVED = 0.1


class HypergradientInfo(eqx.Module):
    """How far a hypergradient can be trusted. Every field is a scalar array; NaN means "not known".

    - `inner_residual`: stationarity of the inner point, `‖∂f/∂w‖` relative to the larger of
      `‖∂f/∂w‖` and `‖H w‖` at the point given to `init`.
    - `inner_iterations`: inner iterations spent by the last `fit`.
    - `linear_residual`: `‖g − H q‖ / ‖g‖` of the adjoint system.
    - `iterations`: inverse-Hessian products spent on it (for unrolling: steps differentiated).
    - `outcome`: how it ended; `Outcome[info.outcome]` says it in words, with the remedy.
    - `error`: estimate of `‖estimate − truth‖ / ‖estimate‖`; infinite when it is known to be
      unreliable. Where it is not known, `outcome` says why, unless no estimate was asked for.
    - `error_calls`: gradient-like evaluations (products, gradients) that this estimate took.
    """

    inner_residual: Scalar
    inner_iterations: Int[Array, ""]
    linear_residual: Scalar
    iterations: Int[Array, ""]
    outcome: Outcome
    error: Scalar
    error_calls: Int[Array, ""] = eqx.field(default_factory=lambda: jnp.zeros((), jnp.int32))

    @property
    def nonpositive_curvature(self) -> Bool[Array, "..."]:
        """Whether a direction of non-positive curvature was met."""
        return met_nonpositive_curvature(self.outcome)

    @property
    def breakdown(self) -> Bool[Array, "..."]:
        """Whether a non-finite number was met and contained, or the linear solver broke down."""
        return broke_down(self.outcome)

    def error_with(self, part: Scalar, join: Callable = jnp.maximum) -> Scalar:
        """`error`, joined with what is known of another part of it.

        Without an estimate the part stands alone where it exceeds what small residuals leave open;
        where they are not small, only beyond the norm.
        """
        alone = (part > 1) | (self.solved & (part > LINEAR_SOLVED))
        unknown = jnp.where(alone, part, jnp.nan)
        error = jnp.where(jnp.isnan(self.error), unknown, join(self.error, part))
        return error.astype(self.error.dtype)

    @property
    def solved(self) -> Bool[Array, "..."]:
        """Whether both residuals are known, and small; without an estimate there is no more."""
        return (self.inner_residual <= INNER_SOLVED) & (self.linear_residual <= LINEAR_SOLVED)

    def __str__(self) -> str:
        leaves = jax.tree.leaves(self)
        if any(isinstance(leaf, jax.core.Tracer) or jnp.ndim(leaf) for leaf in leaves):
            return repr(self)
        flags = [
            text
            for flag, text in (
                (self.nonpositive_curvature, "non-positive curvature"),
                (self.breakdown, "breakdown"),
                (self.outcome == Outcome.partial, "a part of the gradient only"),
                (self.outcome == Outcome.one_draw, "of one draw of the noise"),
            )
            if bool(flag)
        ]
        error = float(self.error)
        return ", ".join(
            [
                "error not known" if math.isnan(error) else f"estimated error {error:.1e}",
                f"inner residual {float(self.inner_residual):.1e} "
                f"after {int(self.inner_iterations)} iterations",
                f"linear residual {float(self.linear_residual):.1e} "
                f"after {int(self.iterations)} products",
                *flags,
            ]
        )


class FitInfo(eqx.Module):
    """One `fit`: its `iterations`, and the `residual` as `HypergradientInfo.inner_residual`."""

    residual: Scalar
    iterations: Int[Array, ""]


def direct_info(
    value: Scalar,
    grad: PyTree,
    *,
    inner_residual: Scalar,
    inner_iterations: Int[Array, ""],
    error: Scalar,
    outcome: Outcome = Outcome.solved,
) -> HypergradientInfo:
    """The info of a hypergradient without a linear system; "not_finite" where it is not finite."""
    finite = jnp.isfinite(value) & vector.all_finite(grad)
    return HypergradientInfo(
        inner_residual=inner_residual,
        inner_iterations=inner_iterations,
        linear_residual=jnp.full_like(inner_residual, jnp.nan),
        iterations=jnp.zeros((), jnp.int32),
        outcome=Outcome.where(finite, outcome, Outcome.not_finite),
        error=error,
    )


class Hypergradient(eqx.Module):
    """The outer loss and its total derivative with respect to the hyperparameters.

    - `value`: outer loss, a scalar.
    - `grad`: pytree like `hparams`, `None` at leaves that cannot be differentiated.
    - `state`: the estimator's state, to be passed to the next call (warm start).
    - `info`: see `HypergradientInfo`.
    - `aux`: auxiliary output of the outer loss.
    """

    value: Scalar
    grad: PyTree
    state: Any
    info: HypergradientInfo
    aux: PyTree = None


class Estimator(eqx.Module):
    """One family of hypergradient: a representation of the best response `w*(hparams)`.

    Estimators are immutable; everything that changes is in the state, a pytree. All verbs work
    under `jit`, `vmap` and `scan`. `state.params` is always the current inner solution.

    `state_type` is the class of the states of a family, by which those of another are refused. The
    verbs of every subclass check what they are given before they run.
    """

    state_type: ClassVar[type] = object

    def of_one_draw(self, problem: BilevelProblem) -> bool:
        """Whether a gradient is of one draw of the noise, which does not show how draws differ.

        What `hypergradient` returns, its `error` too, is then that of the given key.
        """
        return problem.stochastic

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for verb in ("init", "fit", "hypergradient"):
            if verb in cls.__dict__:
                setattr(cls, verb, _checked(cls.__dict__[verb]))

    @abstractmethod
    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> Any:
        """The state at the inner point `params`."""

    @abstractmethod
    def fit(
        self,
        problem: BilevelProblem,
        state: Any,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> tuple[Any, FitInfo]:
        """Improve the response at `hparams`."""

    @abstractmethod
    def hypergradient(
        self,
        problem: BilevelProblem,
        state: Any,
        hparams: PyTree,
        inner_batch: PyTree,
        outer_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> Hypergradient:
        """The hypergradient at the state's inner point."""


def check_state(estimator: Estimator, state: Any) -> None:
    """Refuse the state of something else.

    **Raises:** `ValueError` naming both.
    """
    if isinstance(state, estimator.state_type):
        return
    way_out = "pass the `.state` of an earlier result of the same estimator, or none"
    if isinstance(state, Hypergradient):
        way_out = "pass its `.state`"
    raise ValueError(
        f"state: expected the state of {type(estimator).__name__}, received {received(state)}; "
        f"{way_out}."
    )


def _checked(verb: Callable) -> Callable:
    """A verb that refuses what is no problem, no key, no arrays and no state of its family.

    Python floats and NumPy values become JAX arrays. What is not finite has an infinite error.
    """
    signature = inspect.signature(verb)

    @functools.wraps(verb)
    def checked(self: Estimator, *arguments: Any, **options: Any) -> Any:
        given = signature.bind(self, *arguments, **options)
        trees = {
            name: tree
            for name, tree in given.arguments.items()
            if name not in ("self", "problem", "key", "state")
        }
        owner = type(self).__name__
        check_call(owner, given.arguments["problem"], given.arguments.get("key"), **trees)
        if "state" in signature.parameters:
            check_state(self, given.arguments["state"])
        given.arguments |= as_arrays(trees)
        out = verb(*given.args, **given.kwargs)
        return _known_to_fail(out) if isinstance(out, Hypergradient) else out

    return checked


def _known_to_fail(out: Hypergradient) -> Hypergradient:
    """With an infinite error where a number is not finite, of which no estimate says anything."""
    failed = out.info.outcome == Outcome.not_finite
    error = jnp.where(failed, jnp.inf, out.info.error).astype(out.info.error.dtype)
    return eqx.tree_at(lambda o: o.info.error, out, error)
