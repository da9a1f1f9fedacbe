"""What a member of the zoo is, and the derivatives of its solution by several means."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from hypergrad import BilevelProblem, Dense, FixedPoint, implicit_solver
from hypergrad.linear import LinearSolver

#: Step of central differences, of a direction of unit length.
STEP = 1e-5
DENSE = Dense()
#: Iterates of a run that are kept, and how many of them Jacobians are taken at.
WATCHED, TAKEN = 160, 12
#: Errors of these iterates, relative. The theorem is local: far away there is another active set,
#: or another basin, and very close the rounding of the solution itself.
FAR, NEAR = 1e-4, 1e-8


@dataclass(frozen=True)
class Member:
    """An inner problem, and a solver that was written for it.

    - `name`: in tables and pictures.
    - `residual`: `residual(x, theta)`, zero at the solution, an array like `x`.
    - `theta`: the hyperparameters, any pytree.
    - `start`: where the solver begins, an array.
    - `advance`: `advance(state, theta) -> state`, one iteration of the solver.
    - `iterations`: of a run. The end is taken as the solution; `WATCHED` iterates on the way are
      kept, evenly spaced.
    - `begin`, `point`: the solver's state at an `x`, and the `x` of a state; by default the state
      is the point itself.
    - `loss`: where the residual is the gradient of a loss, that loss.
    - `linear`: our linear solver for the derivative. Default `Dense()`.
    - `theirs`: that of jaxopt.
    """

    name: str
    residual: Callable[[Array, PyTree], Array]
    theta: PyTree
    start: Array
    advance: Callable[[Any, PyTree], Any]
    iterations: int
    begin: Callable[[Array], Any] = lambda x: x
    point: Callable[[Any], Array] = lambda state: state
    loss: Callable[[Array, PyTree], Array] | None = None
    linear: LinearSolver = DENSE
    theirs: Callable = jaxopt.linear_solve.solve_lu

    @cached_property
    def flat(self) -> tuple[Float[Array, " h"], Callable]:
        """The hyperparameters as a vector, and the way back."""
        return ravel_pytree(self.theta)

    @cached_property
    def path(self) -> Callable:
        """`path(vector, start)`: iterates, shape `(WATCHED, *x)`, and the residual at the end."""
        ends = np.linspace(0, self.iterations, WATCHED + 1).astype(int)
        gaps = np.diff(ends)

        @jax.jit
        def path(vector: Array, start: Array) -> tuple[Array, Array]:
            theta = self.flat[1](vector)

            def stretch(state: Any, gap: Array) -> tuple[Any, Array]:
                state = jax.lax.fori_loop(0, gap, lambda _, s: self.advance(s, theta), state)
                return state, self.point(state)

            iterates = jax.lax.scan(stretch, self.begin(start), gaps)[1]
            return iterates, self.residual(iterates[-1], theta)

        return path

    @cached_property
    def ours(self) -> Callable:
        """`ours(points, directions)`: the derivative at each point along each direction."""
        vector, back = self.flat

        def step(x: Array, vector: Array, _: None) -> Array:
            return x - self.residual(x, back(vector))

        def loss(x: Array, vector: Array, _: None) -> Array:
            assert self.loss is not None
            return self.loss(x, back(vector))

        if self.loss is None:
            problem = BilevelProblem(None, lambda x, *_: jnp.sum(x), FixedPoint(step))
        else:
            problem = BilevelProblem(loss, lambda x, *_: jnp.sum(x))

        def derivative(point: Array, direction: Array) -> Array:
            # Not strict: far from the solution there may be no derivative.
            solve = implicit_solver(problem, lambda x, *_: x, self.linear, strict=False)
            return jax.jvp(lambda v: solve(point, v), (vector,), (direction,))[1]

        return _once(jax.vmap(jax.vmap(derivative, (None, 0)), (0, None)))

    @cached_property
    def jaxopts(self) -> Callable:
        """The same by jaxopt's `root_jvp`, at one point."""
        vector, back = self.flat

        def derivative(point: Array, direction: Array) -> Array:
            return jaxopt.implicit_diff.root_jvp(
                lambda x, v: self.residual(x, back(v)),
                point,
                (vector,),
                (direction,),
                solve=self.theirs,
            )

        return _once(jax.vmap(derivative, (None, 0)))


@dataclass(frozen=True)
class Derivatives:
    """What was measured of a member.

    - `iterate_errors`, `jacobian_errors`: at iterates close by, relative to the end.
    - `differences`, `jaxopt`: relative errors of our derivative at the solution, against central
      differences of solving again, and against jaxopt's.
    - `slope`: of the logarithm of the one error over that of the other.
    - `derivative`: at the solution, shape `(directions, *x)`.
    - `residual`: largest entry of the residual at the solution.
    """

    iterate_errors: Float[np.ndarray, " n"]
    jacobian_errors: Float[np.ndarray, " n"]
    differences: float
    jaxopt: float
    slope: float
    derivative: np.ndarray
    residual: float


def derivatives(member: Member, directions: Float[np.ndarray, "k h"]) -> Derivatives:
    """Measure a member along these directions of its hyperparameters.

    Between its three programs all is NumPy's: of JAX each operation would be compiled, too.
    """
    vector = np.asarray(member.flat[0])
    iterates, residual = map(np.asarray, member.path(vector, member.start))
    solution = iterates[-1]
    errors = _norms(iterates - solution) / _norm(solution)
    close = np.flatnonzero((errors < FAR) & (errors > NEAR))
    if len(close) < 3:
        raise RuntimeError(
            f"{member.name}: expected three iterates or more between {NEAR} and {FAR} of the "
            f"solution, received {len(close)}."
        )
    chosen = close[np.linspace(0, len(close) - 1, TAKEN).round().astype(int)]
    found = np.asarray(member.ours(iterates[np.append(chosen, -1)], directions))
    exact = found[-1]

    solved = [
        [np.asarray(member.path(vector + s * STEP * d, solution)[0])[-1] for s in (1, -1)]
        for d in directions
    ]
    difference = np.stack([(high - low) / (2 * STEP) for high, low in solved])
    others = np.asarray(member.jaxopts(solution, directions))
    x_errors = errors[chosen]
    j_errors = _norms(found[:-1] - exact) / _norm(exact)
    slope = np.polyfit(np.log(x_errors), np.log(j_errors), 1)[0]
    return Derivatives(
        iterate_errors=x_errors,
        jacobian_errors=j_errors,
        differences=_norm(exact - difference) / _norm(difference),
        jaxopt=_norm(exact - others) / _norm(others),
        slope=float(slope),
        derivative=exact,
        residual=float(np.max(np.abs(residual))),
    )


def _once(function: Callable) -> Callable:
    """Compiled for a single call, to which the compiler's optimisations are worth nothing."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def _norm(array: Any) -> float:
    return float(np.linalg.norm(np.ravel(array)))


def _norms(arrays: np.ndarray) -> np.ndarray:
    return np.linalg.norm(arrays.reshape(len(arrays), -1), axis=1)
