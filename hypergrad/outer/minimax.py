"""Games of two players: minimise over the hyperparameters what an opponent maximises."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.envelope import ValueProblem
from hypergrad.expected import require_function_fields
from hypergrad.implicit.optimality import ProximalStep
from hypergrad.outer.constraints import (
    Box,
    Budget,
    Constraint,
    L1Ball,
    ScaledSimplex,
    check_start,
    project,
)

# Sets whose projection has a projection as its Jacobian.
_POLYHEDRAL = (Box, Budget, L1Ball, ScaledSimplex)


class MinimaxProblem(ValueProblem):
    """`min over x, max over y, of f(y, x)`, made by `BilevelProblem.minimax`.

    `hparams` is `x`, `params` the opponent `y`; as a `BilevelProblem`, `inner = −f` and
    `outer = f`. Where the opponent has a set, the inner problem is the fixed point of a projected
    step of length 1.

    **Arguments:**

    - `f`: `f(params, hparams, batch) -> scalar`: the opponent first, as params are in every loss.
    - `opponent`: the set of the params, as the `constraint` of an outer algorithm: `None`, a
      `Constraint` (`ScaledSimplex()`, `Box(...)`), or a pytree prefix of `params` of these.
    - `worst`: optional `worst(hparams, batch) -> scalar`, `max over params of f` where it is known
      in closed form (the largest loss of a group). With it a run is judged by the worst case:
      `Result.value` and `best`, patience, the guard against over-tuning. Without it they are about
      `f` at the opponent of the moment, which says nothing of how good the hyperparameters are.
    - `stochastic`: `f` (and `worst`) take a further argument `key`.
    """

    advice: ClassVar[str] = (
        "a game: hypergrad.outer.Extragradient moves both players at once; "
        "Alternating(Envelope(solver), optimizer) lets the opponent answer first"
    )
    f: Callable = None  # type: ignore[assignment]
    opponent: PyTree = None
    worst: Callable | None = None

    def __init__(
        self,
        f: Callable,
        *,
        opponent: PyTree = None,
        worst: Callable | None = None,
        stochastic: bool = False,
    ) -> None:
        self.f = f
        self.opponent = opponent
        self.worst = worst
        require_function_fields(self, optional=("worst",))
        self.outer = f
        self.inner = _negated(f) if opponent is None else None
        self.optimality = None if opponent is None else _projected(f, opponent)
        self.has_aux = False
        self.stochastic = stochastic

    def inner_loss(
        self, params: PyTree, hparams: PyTree, batch: PyTree, key: Array | None = None
    ) -> tuple[Scalar, PyTree]:
        """`−f`, whether or not the opponent has a set."""
        return self._loss("inner", _negated(self.f), params, hparams, batch, key)

    def evaluation_loss(
        self, params: PyTree, hparams: PyTree, batch: PyTree, key: Array | None = None
    ) -> Scalar:
        """The worst case if it is known, else `f`."""
        if self.worst is None:
            return super().evaluation_loss(params, hparams, batch, key)
        return jnp.asarray(self.worst(hparams, batch, *self._key(key)))

    def project_params(self, params: PyTree) -> PyTree:
        """The nearest opponent of its set."""
        return project(self.opponent, params)

    def check_start(self, params: PyTree, hparams: PyTree) -> None:
        """Refuse an opponent that starts outside its set.

        **Raises:** `ValueError` naming the leaf, its value and the nearest allowed.
        """
        check_start(self.opponent, params, "params (the opponent)")


def _negated(f: Callable) -> Callable:
    def inner(params: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> Scalar:
        return -f(params, hparams, batch, *key)

    return inner


def _projected(f: Callable, opponent: PyTree) -> ProximalStep:
    def prox(point: PyTree, hparams: PyTree, step: Any) -> PyTree:
        return project(opponent, point)

    sets = jax.tree.leaves(opponent, is_leaf=lambda x: isinstance(x, Constraint))
    return ProximalStep(
        _negated(f), prox, polyhedral=all(isinstance(one, _POLYHEDRAL) for one in sets)
    )
