"""A linear solver that finds out, along a run, which of several settings spends fewest products.

An outer search solves a sequence of related systems. Khodak et al., "Learning to relax: setting
solver parameters across a sequence of linear system instances" (ICLR 2024), choose the settings of
a solver by a bandit that sees nothing but iteration counts, and only of the one that it played. An
outer search has tens of systems rather than thousands, and they become harder along the way: here
two settings are compared on one and the same system, which says more than many solves of different
ones.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from hypergrad.expected import received
from hypergrad.linear import vector
from hypergrad.linear.base import IterativeSolver, LinearSolver
from hypergrad.linear.operator import LinearOperator
from hypergrad.linear.solution import LinearSolution
from hypergrad.linear.system import System

#: Solves in a row of one trial, of arms that do not and that do learn from solve to solve: after a
#: pause, the first solve of `RecyclingCG` takes about as many products as that of `CG`.
_ONCE, _LEARNS = 1, 2
#: Products of later solves of an arm that learns, relative to its second one: 0.86 in the median of
#: outer runs of the experiment `relax`, of which a little less is counted upon.
_LATER = 0.9
#: Below which cost an arm takes the place of the best one: by chance alone, two solves of one
#: system differ by this much.
_CHEAPER = 0.95
#: Products of a solve from which on another arm is tried on it: below, it has little to save.
_WORTH = 10
#: Steps of an arm that nothing limits.
_MOST = 10**6
#: How many times as many products one arm is taken to need as another, at most.
_WORST = 10.0


class TunedState(eqx.Module):
    """What `Tuned` knows of its arms.

    - `costs`: products of each arm relative to those of the best one, by their last comparison.
    - `arm`: the best one.
    - `tried`: products that went into trying each arm.
    - `trial`, `left`: the arm that is being tried, and on how many more systems.
    - `solves`, `spent`: how many there were, and the products of all of them.
    - `learned`: what the arms themselves learn from solve to solve.
    """

    costs: Float[Array, " arms"]
    arm: Int[Array, ""]
    tried: Float[Array, " arms"]
    trial: Int[Array, ""]
    left: Int[Array, ""]
    solves: Int[Array, ""]
    spent: Scalar
    learned: tuple


class Tuned(LinearSolver):
    """Several solvers, of which the one is used that needed fewest products when last compared.

    That one, at first the first, solves every system. Now and then another one is given the same
    system, from the same start and with no more products than the best one took: what it takes, or
    at its pace would have taken, relative to that, is its cost from then on, and clearly below one
    it takes over. What goes into trying an arm stays below a `share` of all products, divided by
    the square of its cost.

    An arm that was never tried is tried as soon as that leaves room for a solve, or solves become
    dearer than they were; none is on solves of fewer than ten products, and one whose
    preconditioner costs half a solve to build is left alone. Arms that learn from solve to solve
    (`RecyclingCG`) are tried on two systems in a row and judged by the second. All answers are the
    best arm's, or, if it breaks down, those of one that was tried and did not.

    It learns where it is given its state back: within `ImplicitDifferentiation(warm_start=True)`,
    and so in all outer algorithms, and in their checkpoints. Without a state it is its first arm.
    `state.linear_state` of the estimator's state is a `TunedState`.

    Worth it for runs of tens of outer steps whose best setting is not known. Put first what you
    would take without it: an arm costs about one solve to try.

    **Arguments:**

    - `arms`: two or more solvers of one tolerance that iterate: `RecyclingCG()`, `CG()`,
      `PCG(Jacobi(4))`, `PCG(NystromPreconditioner(20))`. For systems that may be indefinite, put it
      into a `Fallback`.
    - `share`: of all products, what is spent on trying an arm that is as good as the best one.
      Default 0.05.
    """

    symmetric_only: ClassVar[bool] = False

    arms: tuple[IterativeSolver, ...]
    share: float = eqx.field(static=True)
    state: TunedState | None

    def __init__(
        self,
        arms: Sequence[IterativeSolver],
        *,
        share: float = 0.05,
        state: TunedState | None = None,
    ) -> None:
        if not isinstance(arms, Sequence) or isinstance(arms, str):
            raise ValueError(f"Tuned: arms expected a list of solvers, received {received(arms)}.")
        self.arms = tuple(arms)
        if len(self.arms) < 2:
            raise ValueError(f"Tuned: arms expected at least 2, received {len(self.arms)}.")
        for arm in self.arms:
            if not isinstance(arm, IterativeSolver):
                raise ValueError(
                    "Tuned: arms expected solvers that iterate to a tolerance (`IterativeSolver`), "
                    f"received {type(arm).__name__}."
                )
        tolerances = {arm.tol for arm in self.arms if isinstance(arm.tol, float | int)}
        if len(tolerances) > 1:
            raise ValueError(
                "Tuned: expected arms of one tolerance, that their products can be compared; "
                f"received {sorted(tolerances)}."
            )
        if not 0 <= share <= 1:
            raise ValueError(f"Tuned: share expected from 0 to 1, received {share}.")
        self.share, self.state = share, state

    @property
    def tol(self) -> float | Scalar:
        """The tolerance of all arms."""
        return self.arms[0].tol

    def check(self, operator: LinearOperator) -> None:
        """See `LinearSolver.check`."""
        for arm in self.arms:
            arm.check(operator)

    def with_tol(self, tol: float | Scalar) -> Self:
        """See `hypergrad.tolerance.HasTolerance`."""
        arms = tuple(arm.with_tol(tol) for arm in self.arms)
        return eqx.tree_at(lambda s: s.arms, self, arms)

    def init_state(self, like: PyTree) -> TunedState:
        """See `LinearSolver.init_state`."""
        dtype = vector.vdot(vector.widen(like), vector.widen(like)).dtype
        count = len(self.arms)
        none = jnp.zeros((), jnp.int32)
        return TunedState(
            costs=jnp.ones(count, dtype),
            arm=none,
            tried=jnp.zeros(count, dtype),
            trial=none,
            left=none,
            solves=none,
            spent=jnp.zeros((), dtype),
            learned=tuple(arm.init_state(like) for arm in self.arms),
        )

    def with_state(self, state: PyTree) -> Self:
        """See `LinearSolver.with_state`."""
        return eqx.tree_at(lambda s: s.state, self, state, is_leaf=_is_none)

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`."""
        state = self.state
        if state is None:
            return self.arms[0].solve_scaled(system)
        if system.start is None:
            system = system.started_at(vector.zeros_like(system.rhs))

        # The best arm, then one to be tried. In a loop: every arm is compiled once.
        def stage(carry: tuple, number: Array) -> tuple[tuple, LinearSolution]:
            learned, best = carry
            trial, due = self._trial(state, best)
            is_first = number == 0
            solution, learned = jax.lax.cond(
                is_first | due,
                lambda: self._play(
                    system,
                    learned,
                    jnp.where(is_first, state.arm, trial),
                    jnp.where(is_first | best.breakdown, _MOST, best.products),
                ),
                lambda: (best, learned),
            )
            return (learned, solution), solution

        nothing = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype),
            jax.eval_shape(lambda: self._play(system, state.learned, state.arm, state.arm)[0]),
        )
        (learned, _), both = jax.lax.scan(stage, (state.learned, nothing), jnp.arange(2))
        best, tried = (jax.tree.map(lambda a, i=i: a[i], both) for i in range(2))
        trial, due = self._trial(state, best)
        answer = vector.where(best.breakdown & ~tried.breakdown, tried, best)
        after = self._compared(state, trial, due, best, tried)
        products = best.products + jnp.where(due, tried.products, 0)
        after = eqx.tree_at(
            lambda s: (s.solves, s.spent, s.learned),
            after,
            (
                state.solves + (products > 0).astype(jnp.int32),
                state.spent + products.astype(state.spent.dtype),
                learned,
            ),
        )
        return eqx.tree_at(
            lambda s: (s.products, s.curvature_min, s.curvature_max, s.state),
            answer,
            (
                products,
                jnp.fmin(best.curvature_min, tried.curvature_min),
                jnp.fmax(best.curvature_max, tried.curvature_max),
                after,
            ),
            is_leaf=_is_none,
        )

    def _trial(self, state: TunedState, best: LinearSolution) -> tuple[Array, Bool[Array, ""]]:
        """Which arm is the next to be tried, and whether on this system."""
        dtype = state.costs.dtype
        # Nor does one save much whose building alone would cost half of a solve.
        worth = jnp.asarray([max(_WORTH, 2 * arm.building + 1) for arm in self.arms])
        left_alone = (best.products < worth) & ~best.breakdown
        left_alone = left_alone.at[state.arm].set(True)
        needed = jnp.where(left_alone, jnp.inf, state.tried * state.costs**2)
        going = state.left > 0
        trial = jnp.where(going, state.trial, jnp.argmin(needed).astype(jnp.int32))
        took = best.products.astype(dtype)
        # What is not known yet is worth a solve where solves become dearer; else it can wait.
        first = state.tried[trial] == 0
        dearer = (state.solves > 0) & (took * state.solves >= state.spent)
        price = jnp.where(first, took, needed[trial])
        due = (price <= self.share * state.spent) | (first & (dearer | best.breakdown))
        due = going | (due & jnp.isfinite(needed[trial]))
        # A right-hand side of zero says nothing.
        return trial, due & (best.products > 0)

    def _play(
        self, system: System, learned: tuple, arm: Array, most: Array
    ) -> tuple[LinearSolution, tuple]:
        """One arm on the system, with at most so many products."""

        def of(number: int) -> tuple[LinearSolution, tuple]:
            solver = self.arms[number].with_state(learned[number])
            steps = jnp.minimum(
                jnp.asarray(solver.max_steps, jnp.int32), jnp.maximum(most - solver.building, 0)
            )
            solver = eqx.tree_at(lambda s: s.max_steps, solver, steps)
            solution = solver.solve_scaled(system)
            after = tuple(solution.state if i == number else old for i, old in enumerate(learned))
            return eqx.tree_at(lambda s: s.state, solution, None, is_leaf=_is_none), after

        return jax.lax.switch(arm, [lambda n=n: of(n) for n in range(len(self.arms))])

    def _compared(
        self,
        state: TunedState,
        trial: Array,
        due: Array,
        best: LinearSolution,
        tried: LinearSolution,
    ) -> TunedState:
        """With what a trial has shown."""
        learns = jnp.asarray([bool(jax.tree.leaves(known)) for known in state.learned])
        row = jnp.where(learns[trial], _LEARNS, _ONCE)
        left = jnp.where(state.left > 0, state.left, row) - 1
        took, compared = self._needed(tried), jnp.maximum(self._needed(best), 1)
        later = jnp.where(learns[trial], _LATER, 1)
        cost = jnp.clip(later * took / compared, 1 / _WORST, _WORST)
        cost = jnp.where(best.breakdown & ~tried.breakdown, 1 / _WORST, cost)
        cost = jnp.where(tried.breakdown, _WORST, cost)
        judged = due & (left == 0)
        costs = jnp.where(judged, state.costs.at[trial].set(cost), state.costs)
        cheaper = costs[trial] < _CHEAPER * costs[state.arm]
        arm = jnp.where(cheaper, trial, state.arm)
        arm = jnp.where(judged, arm, state.arm).astype(jnp.int32)
        paid = jnp.where(due, tried.products, 0).astype(state.tried.dtype)
        return TunedState(
            costs=costs / costs[arm],
            arm=arm,
            tried=state.tried.at[trial].add(paid),
            trial=jnp.where(due, trial, state.trial),
            left=jnp.where(due, left, state.left).astype(jnp.int32),
            solves=state.solves,
            spent=state.spent,
            learned=state.learned,
        )

    def _needed(self, solution: LinearSolution) -> Scalar:
        """Products to the tolerance; of an arm that was cut short, at its pace so far."""
        dtype = solution.residual.dtype
        tol = jnp.maximum(jnp.asarray(self.tol, dtype), jnp.finfo(dtype).eps)
        pace = jnp.log(jnp.clip(solution.residual, jnp.finfo(dtype).eps, 0.9))
        ahead = jnp.clip(jnp.log(tol) / pace, 1, _WORST)
        reached = solution.residual <= self.tol
        return solution.products * jnp.where(reached, 1, ahead).astype(dtype)


def _is_none(leaf: object) -> bool:
    return leaf is None
