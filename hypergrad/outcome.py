"""How a solve ended, and what to do about it."""

from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


def _item(text: str) -> "Outcome":
    """The class is written with texts, of which Equinox makes its members."""
    return cast("Outcome", text)


class Outcome(eqx.Enumeration):
    """How a linear solve, or the computation of a hypergradient, ended.

    An integer inside compiled programs; compare with `==`, choose with `Outcome.where`.
    `Outcome[outcome]` is its text: what happened, and the remedy. The milder ones come first; from
    `breakdown` on the answer is not usable.
    """

    solved = _item("the system is solved to the tolerance that was asked for.")
    approximate = _item(
        "the method gives an approximation by design and knows no tolerance: see its residual."
    )
    max_steps_reached = _item(
        "the linear solver took all its steps before it reached its tolerance. Raise max_steps, "
        "precondition, add damping, or ask for less."
    )
    stagnated = _item(
        "the residual of the linear system no longer falls: the operator is singular, or worse "
        "conditioned than its numbers have digits. Add damping, compute in a wider type, or give "
        "GMRES a longer restart."
    )
    partial = _item(
        "a hyperparameter acts through an operation without derivative as well, and "
        'BilevelProblem(..., biased="keep") asked for the part that is seen: how far that is from '
        "the whole is not known (info.error is NaN). Relax the operation, use self-tuning layers, "
        "or leave the hyperparameter to a searcher."
    )
    one_draw = _item(
        "the gradient is of one draw of the noise, and nothing is known about how draws differ "
        "(info.error is NaN, or a lower bound). OverKeys(estimator, keys) takes several and "
        "estimates it. If this draw is the problem, let the losses close over the key."
    )
    not_metasmooth = _item(
        "the training is not metasmooth: over steps of the size given to Metasmooth more of the "
        "move of its end is noise than not, so that the hypergradient says nothing of such a step. "
        "Lower the learning rate, warm up, raise eps_root, normalise or widen the layers, or take "
        "smaller steps."
    )
    indefinite = _item(
        "the inner Hessian is not positive definite here (info.nonpositive_curvature); the system "
        "was solved all the same, but the point is no strict minimum of the inner loss. Solve the "
        "inner problem further, add damping, or use Gauss-Newton curvature."
    )
    nonpositive_curvature = _item(
        "the inner Hessian is not positive definite here (info.nonpositive_curvature): the linear "
        "solve stopped early. Solve the inner problem further, add damping, or use Gauss-Newton "
        "curvature or a linear solver for indefinite systems."
    )
    breakdown = _item(
        "the recurrence of the linear solver broke down (info.breakdown); the hypergradient is not "
        "usable. Use GMRES, MINRES or Dense, or a preconditioner that is positive definite."
    )
    diverged = _item(
        "the Neumann series diverges (info.breakdown); the hypergradient is not usable. Take a "
        "smaller step, or CG."
    )
    not_polyhedral = _item(
        "the proximal operator was declared polyhedral and is not (info.breakdown); the "
        "hypergradient is not usable. Use ProximalStep(..., polyhedral=False)."
    )
    not_finite = _item(
        "a number that is not finite was met in the losses or the linear solve "
        "(info.breakdown); the hypergradient is not usable."
    )


# What a loop carries: if it ends now, it ends for want of steps.
RUNNING = Outcome.max_steps_reached


def broke_down(outcome: Outcome) -> Bool[Array, "..."]:
    """Whether the answer is not usable."""
    return _code(outcome) >= _code(Outcome.breakdown)


def met_nonpositive_curvature(outcome: Outcome) -> Bool[Array, "..."]:
    """Whether the operator was found not to be positive definite."""
    return ~broke_down(outcome) & (_code(outcome) >= _code(Outcome.indefinite))


def worst(outcome: Outcome) -> Outcome:
    """The worst of a batch of outcomes."""
    return jax.tree.map(jnp.max, outcome)


def worse(one: Outcome, other: Outcome) -> Outcome:
    """The worse of two."""
    return jax.tree.map(jnp.maximum, one, other)


def text_of(outcome: Outcome) -> str:
    """What happened and the remedy, for a concrete outcome."""
    return Outcome[outcome]  # type: ignore[misc]  # mypy does not know of Equinox's metaclass


def _code(outcome: Outcome) -> Array:
    return jnp.asarray(jax.tree.leaves(outcome)[0])
