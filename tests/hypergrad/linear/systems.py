"""Linear systems on a pytree whose matrix is known: shared by the tests of the linear solvers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from hypergrad.linear import LinearOperator, LinearSolution, LinearSolver

SIZE = 12


def tree(x: np.ndarray | Array) -> PyTree:
    """A vector of 12 entries as a pytree with a matrix, a scalar, a vector and a hole."""
    return {"w": x[:6].reshape(2, 3), "none": None, "b": (x[6], x[7:])}


def flat(v: PyTree) -> Array:
    """The inverse of `tree`."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in (v["w"], *v["b"])])


def matrix(kind: str) -> np.ndarray:
    """A 12 x 12 matrix: `spd`, `ill`, `indefinite`, `singular`, `nonsymmetric` or `skew`."""
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    if kind == "nonsymmetric":
        return 2 * np.eye(SIZE) + 0.3 * rng.normal(size=(SIZE, SIZE))
    if kind == "skew":
        a = rng.normal(size=(SIZE, SIZE))
        return a - a.T
    spectrum = {
        "spd": np.geomspace(0.2, 8.0, SIZE),
        "ill": np.geomspace(1e-6, 1.0, SIZE),
        "indefinite": np.r_[-1.5, -0.4, np.geomspace(0.3, 6.0, SIZE - 2)],
        "singular": np.r_[0.0, 0.0, np.geomspace(0.3, 6.0, SIZE - 2)],
    }[kind]
    return (q * spectrum) @ q.T


RHS = np.random.default_rng(2).normal(size=SIZE)


@eqx.filter_jit
def _solve(
    solver: LinearSolver, a: Array, b: Array, initial: Array, poison: Array, symmetric: bool
) -> LinearSolution:
    def product(m: Array):
        def mv(v: PyTree) -> PyTree:
            x = flat(v)
            spoiled = jnp.abs(poison @ x) > 1e-3 * jnp.linalg.norm(x)
            # Applying an operator to zeros is against the rules: it must show at once.
            spoiled = spoiled | (~jnp.any(x != 0) & jnp.any(b != 0))
            return tree(jnp.where(spoiled, jnp.nan, m @ x).astype(x.dtype))

        return mv

    operator = LinearOperator(product(a), product(a.T), symmetric=symmetric)
    return solver.solve(operator, tree(b), initial=tree(initial))


def solve(
    solver: LinearSolver,
    a: np.ndarray,
    b: np.ndarray = RHS,
    *,
    dtype: type = np.float64,
    initial: np.ndarray | None = None,
    poison: np.ndarray | None = None,
) -> LinearSolution:
    """Solve `a x = b`; products with zeros, or with a part along `poison`, are NaN.

    One compilation serves all systems of a solver, a dtype and a symmetry.
    """
    solver = jax.tree.map(jnp.asarray, solver)
    symmetric = bool(np.array_equal(a, a.T) or np.allclose(a, a.T))
    return _solve(
        solver,
        jnp.asarray(a, dtype),
        jnp.asarray(b, dtype),
        jnp.asarray(np.zeros(SIZE) if initial is None else initial, dtype),
        jnp.asarray(np.zeros(SIZE) if poison is None else poison, dtype),
        symmetric,
    )


def error(solution: LinearSolution, a: np.ndarray, b: np.ndarray = RHS) -> float:
    """Relative distance to the least-squares solution of least norm."""
    answer = np.linalg.pinv(a, rcond=1e-10) @ b
    value = np.asarray(flat(solution.value), np.float64)
    return float(np.linalg.norm(value - answer) / np.linalg.norm(answer))


def residual(solution: LinearSolution, a: np.ndarray, b: np.ndarray = RHS) -> float:
    """Relative residual, computed from the matrix."""
    value = np.asarray(flat(solution.value), np.float64)
    return float(np.linalg.norm(b - a @ value) / np.linalg.norm(b))
