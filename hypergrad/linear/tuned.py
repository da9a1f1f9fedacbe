"""A linear solver that finds out, along a run, which of several settings spends fewest products.

An outer search solves a sequence of related systems. Khodak et al., "Learning to relax: setting
solver parameters across a sequence of linear system instances" (ICLR 2024), choose the settings of
a solver by a bandit that sees nothing but iteration counts. An outer search has tens of systems
rather than thousands, so that here what is tried is cut short where it is worse, and is finished by
the setting that is known to be good.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Scalar

from hypergrad.bandit import tsallis_inf
from hypergrad.expected import received
from hypergrad.linear import vector
from hypergrad.linear.base import IterativeSolver, LinearSolver
from hypergrad.linear.operator import LinearOperator
from hypergrad.linear.solution import LinearSolution
from hypergrad.linear.system import System

#: Weight of the last solve in the cost of an arm: systems change along a run.
_NEWEST = 0.5
#: Solves by which an arm is judged: the first one begins with nothing; those that learn from solve
#: to solve need a few until they know something.
_ONCE, _FIRST, _LEARNS = 1, 2, 5
#: Fewest steps that an arm is tried for.
_LEAST = 3
#: Steps of an arm that nothing limits.
_MOST = 10**6
#: How much worse than the limit an arm is taken to be at most, when it was cut short.
_WORST = 10.0


class TunedState(eqx.Module):
    """What `Tuned` knows of its arms.

    - `costs`: products for each decade of the residual, a running mean; infinite if never tried.
    - `plays`: solves that each arm began.
    - `arm`: the one that began the last solve.
    - `spent`: products of all solves, and `tried` what of them went into trying, beyond what the
      best arm was expected to take.
    - `learned`: what the arms themselves learn from solve to solve.
    """

    costs: Float[Array, " arms"]
    plays: Int[Array, " arms"]
    arm: Int[Array, ""]
    spent: Scalar
    tried: Scalar
    learned: tuple


class Tuned(LinearSolver):
    """Several solvers, of which the one is used that has needed fewest products so far.

    The first two solves are the first arm's. Then each of the others is tried once, and later again
    at times, drawn by the Tsallis-INF rule of their costs, while `share` of all products allows it.
    Arms that learn from solve to solve (`RecyclingCG`) have five solves to begin with. An arm whose
    preconditioner costs half a solve to build is left alone. One that is tried may take
    as many steps as the best arm is expected to need; then the best arm goes on from where it
    stopped. So all answers reach the same tolerance, and what is chosen changes the products only.

    It learns where it is given its state back: within `ImplicitDifferentiation(warm_start=True)`,
    and so in all outer algorithms, and in their checkpoints. Without a state it is its first arm.
    `state.linear_state` of the estimator's state is a `TunedState`.

    Worth it for runs of tens of outer steps whose best setting is not known. Put first what you
    would take without it: an arm costs about one solve to try.

    **Arguments:**

    - `arms`: two or more solvers of one tolerance that iterate: `RecyclingCG()`, `CG()`,
      `PCG(Jacobi(4))`, `PCG(NystromPreconditioner(20))`. For systems that may be indefinite, put it
      into a `Fallback`.
    - `share`: of all products, the most that is spent on trying an arm again. Default 0.03.
    - `seed`: of the draws. Default 0.
    """

    symmetric_only: ClassVar[bool] = False

    arms: tuple[IterativeSolver, ...]
    share: float = eqx.field(static=True)
    seed: int = eqx.field(static=True)
    state: TunedState | None

    def __init__(
        self,
        arms: Sequence[IterativeSolver],
        *,
        share: float = 0.03,
        seed: int = 0,
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
        self.share, self.seed, self.state = share, seed, state

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
        zero = jnp.zeros((), dtype)
        return TunedState(
            costs=jnp.full(count, jnp.inf, dtype),
            plays=jnp.zeros(count, jnp.int32),
            arm=jnp.zeros((), jnp.int32),
            spent=zero,
            tried=zero,
            learned=tuple(arm.init_state(like) for arm in self.arms),
        )

    def with_state(self, state: PyTree) -> Self:
        """See `LinearSolver.with_state`."""
        return eqx.tree_at(lambda s: s.state, self, state, is_leaf=lambda leaf: leaf is None)

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`."""
        state = self.state
        if state is None:
            return self.arms[0].solve_scaled(system)
        decades = self._decades(state.costs.dtype)
        best = jnp.argmin(state.costs).astype(jnp.int32)
        expected = state.costs[best] * decades
        arm = self._arm(state, best, expected)
        trying = (arm != best) & jnp.isfinite(expected)
        # No float is compared with the largest integer: in float32 it would be one more than that.
        steps = jnp.clip(jnp.ceil(expected), _LEAST, _MOST).astype(jnp.int32)
        limit = jnp.where(trying, steps, _MOST)
        known = state.learned
        start = vector.zeros_like(system.rhs) if system.start is None else system.start

        def stage(carry: tuple, number: Array) -> tuple[tuple, LinearSolution]:
            x, learned, last = carry
            needed = (number == 0) | (trying & ~self._reached(last))
            playing = jnp.where(number == 0, arm, best)
            most = jnp.where(number == 0, limit, _MOST)
            idle = eqx.tree_at(lambda s: s.products, last, jnp.zeros((), jnp.int32))
            solution, learned = jax.lax.cond(
                needed,
                lambda: self._play(system.started_at(x), learned, playing, most),
                lambda: (idle, learned),
            )
            return (solution.value, learned, solution), solution

        nothing = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype),
            jax.eval_shape(lambda: self._play(system.started_at(start), known, arm, limit)[0]),
        )
        (_, learned, last), both = jax.lax.scan(stage, (start, known, nothing), jnp.arange(2))
        products = jnp.sum(both.products).astype(jnp.int32)
        first = jax.tree.map(lambda a: a[0], both)
        state = self._learned(state, arm, trying, expected, decades, first, products)
        state = eqx.tree_at(lambda s: s.learned, state, learned)
        return eqx.tree_at(
            lambda s: (s.products, s.curvature_min, s.curvature_max, s.state),
            last,
            (products, jnp.fmin(*both.curvature_min), jnp.fmax(*both.curvature_max), state),
            is_leaf=lambda leaf: leaf is None,
        )

    def _arm(self, state: TunedState, best: Array, expected: Scalar) -> Array:
        """Which arm begins: one not yet tried, else the best one, or one to try again."""
        # Where building alone would cost half of a solve there is little to be gained.
        building = jnp.asarray([arm.building for arm in self.arms], state.costs.dtype)
        untried = (state.plays < self._wanted(state)) & (2 * building < expected)
        first = jnp.argmax(untried).astype(jnp.int32)
        solves = jnp.sum(state.plays)
        key = jax.random.fold_in(jax.random.key(self.seed), solves)
        rounds = jnp.maximum(solves, 1).astype(state.costs.dtype)
        # Of costs that are all known, where it is used.
        lowest = jnp.min(state.costs)
        relative = rounds * jnp.minimum(state.costs / lowest, _WORST)
        relative = jnp.where(jnp.any(untried), 0, relative)
        weights = tsallis_inf(relative, 2 / jnp.sqrt(rounds))
        drawn = jax.random.choice(key, len(self.arms), p=weights).astype(jnp.int32)
        affordable = state.tried + expected <= self.share * state.spent
        settled = jnp.where(affordable, drawn, best)
        return jnp.where(jnp.any(untried), first, settled)

    def _wanted(self, state: TunedState) -> Int[Array, " arms"]:
        """The solves by which each arm is judged."""
        least = [_FIRST, *[_ONCE] * (len(self.arms) - 1)]
        return jnp.asarray(
            [
                _LEARNS if jax.tree.leaves(m) else n
                for m, n in zip(state.learned, least, strict=True)
            ]
        )

    def _play(
        self, system: System, learned: tuple, arm: Array, most: Array
    ) -> tuple[LinearSolution, tuple]:
        """One arm on the system, at most so many steps."""

        def of(number: int) -> tuple[LinearSolution, tuple]:
            solver = self.arms[number].with_state(learned[number])
            steps = jnp.minimum(jnp.asarray(solver.max_steps, jnp.int32), most)
            solver = eqx.tree_at(lambda s: s.max_steps, solver, steps)
            solution = solver.solve_scaled(system)
            after = tuple(solution.state if i == number else old for i, old in enumerate(learned))
            return eqx.tree_at(lambda s: s.state, solution, None, is_leaf=_is_none), after

        return jax.lax.switch(arm, [lambda n=n: of(n) for n in range(len(self.arms))])

    def _reached(self, solution: LinearSolution) -> Array:
        return (solution.residual <= self.tol) & ~solution.breakdown

    def _decades(self, dtype: jnp.dtype) -> Scalar:
        """Of the residual that are asked for."""
        tol = jnp.asarray(self.tol, dtype)
        return jnp.maximum(-jnp.log10(jnp.maximum(tol, jnp.finfo(dtype).eps)), 1).astype(dtype)

    def _learned(
        self,
        state: TunedState,
        arm: Array,
        trying: Array,
        expected: Scalar,
        decades: Scalar,
        first: LinearSolution,
        products: Array,
    ) -> TunedState:
        """With what the arm took, or would have taken, had it not been cut short."""
        dtype = state.costs.dtype
        took = first.products.astype(dtype)
        # What is left of the way, at the pace so far.
        pace = -jnp.log10(jnp.clip(first.residual.astype(dtype), jnp.finfo(dtype).eps, 0.9))
        ahead = took * jnp.clip(decades / pace, 1, _WORST)
        fine = self._reached(first)
        cost = jnp.where(fine, took, jnp.where(first.breakdown, _WORST * took, ahead)) / decades
        # A right-hand side of zero says nothing.
        told = took > 0
        old = state.costs[arm]
        judged = state.plays[arm] >= self._wanted(state)[arm]
        mean = jnp.where(judged, (1 - _NEWEST) * old + _NEWEST * cost, cost)
        # Systems that have become harder for one arm have for all: between two solves in a row by
        # the same arm, the others move along, so that one tried long ago does not look better.
        again = told & (state.arm == arm) & judged & ~trying
        others = jnp.where(again, mean / old, 1) * state.costs
        extra = jnp.where(trying, jnp.maximum(products - expected, 0), 0)
        return TunedState(
            costs=others.at[arm].set(jnp.where(told, mean, old)),
            plays=state.plays.at[arm].add(told.astype(jnp.int32)),
            arm=arm,
            spent=state.spent + products.astype(dtype),
            tried=state.tried + extra.astype(dtype),
            learned=state.learned,
        )


def _is_none(leaf: object) -> bool:
    return leaf is None
