"""Sequences of linear systems on a square grid, and how many iterations relaxation takes.

All systems are `A = diagonal I - coupling N`, `N` the sum over the four neighbours of a cell, and
differ in two numbers. Many are solved at once, in float64: cells on one anti-diagonal of the grid
depend on those of the one before only, so that a triangular solve is a sweep over anti-diagonals.
A field is kept by anti-diagonals: entry `(k, i)` is cell `(i, k - i)`, zero outside of the grid.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.fft import dstn


class Systems(NamedTuple):
    """Right-hand sides and starts, shape `(systems, side, side)`; the two numbers of each."""

    rhs: np.ndarray
    start: np.ndarray
    diagonal: np.ndarray
    coupling: np.ndarray

    def swept(self, omega: np.ndarray) -> "_Sweeps":
        """The same by anti-diagonals, each system with its `ω`."""
        rhs, start = (_skewed(np.moveaxis(field, 0, -1)) for field in (self.rhs, self.start))
        return _Sweeps(rhs, start, self.diagonal, self.coupling, omega)


def best_relaxation(diagonal: np.ndarray, coupling: np.ndarray, side: int) -> np.ndarray:
    """The `ω` of least spectral radius, by Young's formula from that of Jacobi's iteration."""
    jacobi = 4 * coupling / diagonal * np.cos(np.pi / (side + 1))
    return 1 + (jacobi / (1 + np.sqrt(1 - jacobi**2))) ** 2


def poisson(
    draws: int, side: int, kind: str, rng: np.random.Generator
) -> tuple[Systems, np.ndarray]:
    """The 5-point Laplacian plus a random multiple of the identity, and those multiples.

    Khodak et al. 2024: `-0.15 + 0.6 Beta(1/2, 3/2)` ("high" variance) or `Beta(2, 6)` ("low"), a
    right-hand side drawn from a normal distribution within the ball of radius `sqrt(n)`.
    """
    shape = {"high": (0.5, 1.5), "low": (2.0, 6.0)}[kind]
    shifts = -0.15 + 0.6 * rng.beta(*shape, draws)
    rhs = np.empty((draws, side, side))
    for one in rhs:
        one[:] = rng.normal(size=one.shape)
        while np.sum(one**2) > one.size:
            one[:] = rng.normal(size=one.shape)
    return Systems(rhs, np.zeros_like(rhs), 4 + shifts, np.ones(draws)), shifts


def heat(steps: int, cells: int, seconds: float) -> tuple[Systems, np.ndarray]:
    """The systems of Crank and Nicolson's method for the heat equation, and the coefficients.

    Khodak et al. 2024: `u_t = c(t) Δu + f` on the unit square, `u = 0` on its edge,
    `c(t) = max(0.1 sin 2πt, -10 sin 2πt)`, `f` a bump that moves in a circle. Each solve starts at
    the state before. States are exact here, by sine transforms.
    """
    dt, side = seconds / steps, cells - 1
    places = np.stack(np.meshgrid(*2 * [np.arange(1, cells) / cells], indexing="ij"), axis=-1)
    waves = 2 * np.cos(np.pi * np.arange(1, cells) / cells)
    laplacian = (waves[:, None] + waves[None] - 4) * cells**2
    state = _bump(places, np.array([0.5, 0.5]), 0.25)
    rhs, start = np.empty((2, steps, side, side))
    coefficients = np.empty(steps)
    for step in range(steps):
        time = (step + 0.5) * dt
        wave = np.sin(2 * np.pi * time)
        coefficients[step] = max(0.1 * wave, -10 * wave)
        half = 0.5 * coefficients[step] * dt * laplacian
        angle = 16 * np.pi * time
        centre = 0.5 + np.array([np.cos(angle), np.sin(angle)]) / 4
        forcing = 32 * _bump(places, centre, 0.125)
        start[step] = state
        modes = (1 + half) * _sines(state) + dt * _sines(forcing)
        rhs[step] = _sines(modes)
        state = _sines(modes / (1 - half))
    coupling = 0.5 * coefficients * dt * cells**2
    return Systems(rhs, start, 1 + 4 * coupling, coupling), coefficients


def _sines(field: np.ndarray) -> np.ndarray:
    return dstn(field, type=1, norm="ortho")


def _bump(places: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    inside = 1 - np.minimum(1, np.sum((places - centre) ** 2, axis=-1) / radius**2)
    return np.exp(1 - 1 / np.maximum(inside, 1e-300))


def iterations(
    systems: Systems, omegas: np.ndarray, method: str, *, tol: float = 1e-8, most: int = 10_000
) -> np.ndarray:
    """Iterations of each system with each `ω` (or its own, shape `(systems, 1)`).

    **Arguments:**

    - `method`: `"sor"`, or `"ssor"`: conjugate gradient preconditioned by symmetric SOR.
    - `tol`: of the residual, relative to its first value (SOR), to the right-hand side (SSOR).

    **Returns:** an integer array, shape `(systems, omegas)`.
    """
    omegas = np.broadcast_to(omegas, (len(systems.rhs), np.shape(omegas)[-1]))
    counts = np.zeros(omegas.shape, np.int64)
    # Those that take about as long are solved together.
    order = np.argsort(systems.diagonal / systems.coupling)
    size = 250
    for column in range(omegas.shape[1]):
        for begin in range(0, len(order), size):
            rows = order[begin : begin + size]
            padded = np.resize(rows, size)
            chosen = Systems(*(field[padded] for field in systems))
            found = _SOLVERS[method](chosen.swept(omegas[padded, column]), tol, most)
            counts[rows, column] = np.asarray(found)[: len(rows)]
    return counts


def _skewed(field: np.ndarray) -> np.ndarray:
    side = field.shape[0]
    out = np.zeros((2 * side - 1, side, field.shape[2]))
    for i in range(side):
        out[i : i + side, i] = field[i]
    return out


def _before(field: jax.Array) -> jax.Array:
    """The sum of the upper and the left neighbour: both on the anti-diagonal before."""
    earlier = jnp.pad(field, ((1, 0), (1, 0), (0, 0)))[:-1]
    return earlier[:, :-1] + earlier[:, 1:]


def _after(field: jax.Array) -> jax.Array:
    """The sum of the lower and the right neighbour."""
    later = jnp.pad(field, ((0, 1), (0, 1), (0, 0)))[1:]
    return later[:, :-1] + later[:, 1:]


class _Sweeps(NamedTuple):
    """Systems by anti-diagonals, shape `(2 side - 1, side, systems)`; three numbers of each."""

    rhs: jax.Array | np.ndarray
    start: jax.Array | np.ndarray
    diagonal: jax.Array | np.ndarray
    coupling: jax.Array | np.ndarray
    omega: jax.Array | np.ndarray

    @property
    def inside(self) -> jax.Array:
        """1 for the cells of the grid."""
        lines, side, _ = self.rhs.shape
        cells = np.arange(lines)[:, None] - np.arange(side)[None]
        return jnp.asarray(((cells >= 0) & (cells < side)).astype(float))[:, :, None]

    @property
    def residual(self) -> jax.Array:
        """Of the starts."""
        return self.rhs - self.times(self.start)

    def times(self, x: jax.Array) -> jax.Array:
        """`A x`."""
        near = self.inside * (_before(x) + _after(x))
        return self.diagonal * x - self.coupling * near

    def lower(self, rhs: jax.Array) -> jax.Array:
        """`(D + ω L)⁻¹ rhs`."""
        share = self.omega * self.coupling

        def sweep(last: jax.Array, at: tuple) -> tuple:
            here, inside = at
            near = last + jnp.pad(last, ((1, 0), (0, 0)))[:-1]
            new = inside * (here + share * near) / self.diagonal
            return new, new

        return jax.lax.scan(sweep, jnp.zeros_like(rhs[0]), (rhs, self.inside))[1]

    def upper(self, rhs: jax.Array) -> jax.Array:
        """`(D + ω U)⁻¹ rhs`: by symmetry, the same with the grid turned around."""
        # Cell (i, j) becomes (side - 1 - i, side - 1 - j): both axes are reversed.
        return self.lower(rhs[::-1, ::-1])[::-1, ::-1]


def _norm(field: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(field**2, axis=(0, 1)))


@partial(jax.jit, static_argnames=("tol", "most"))
def _sor(systems: _Sweeps, tol: float, most: int) -> jax.Array:
    """`x += ω (D + ω L)⁻¹ r` until the residual is small."""
    omega, first = systems.omega, systems.residual
    target = tol * _norm(first)
    share = (1 / omega - 1) * systems.diagonal

    def body(carry: tuple) -> tuple:
        r, going, count, step = carry
        # A y = r + (1 - 1/ω) D y + U y for the step y = (D / ω + L)⁻¹ r.
        y = omega * systems.lower(r)
        r = share * y + systems.coupling * systems.inside * _after(y)
        count = count + going
        return r, going & (_norm(r) > target), count, step + 1

    def unfinished(carry: tuple) -> jax.Array:
        return jnp.any(carry[1]) & (carry[3] < most)

    going = _norm(first) > target
    carry = (first, going, jnp.zeros(len(omega), int), 0)
    return jax.lax.while_loop(unfinished, body, carry)[2]


@partial(jax.jit, static_argnames=("tol", "most"))
def _ssor(systems: _Sweeps, tol: float, most: int) -> jax.Array:
    """Conjugate gradient with `(D + ω L) D⁻¹ (D + ω U) / (ω (2 - ω))` as its preconditioner."""
    omega = systems.omega
    factor = omega * (2 - omega) * systems.diagonal
    inverse = lambda r: factor * systems.upper(systems.lower(r))  # noqa: E731
    dot = lambda x, y: jnp.sum(x * y, axis=(0, 1))  # noqa: E731
    target = tol * _norm(systems.rhs)
    r = systems.residual
    z = inverse(r)

    def body(carry: tuple) -> tuple:
        r, z, p, rho, going, count, step = carry
        image = systems.times(p)
        alpha = rho / jnp.where(going, dot(p, image), 1)
        r = jnp.where(going, r - alpha * image, r)
        z = inverse(r)
        new = dot(r, z)
        p = z + new / jnp.where(going, rho, 1) * p
        count = count + going
        return r, z, p, new, going & (_norm(r) > target), count, step + 1

    def unfinished(carry: tuple) -> jax.Array:
        return jnp.any(carry[4]) & (carry[6] < most)

    going = _norm(r) > target
    carry = (r, z, z, dot(r, z), going, jnp.zeros(len(omega), int), 0)
    return jax.lax.while_loop(unfinished, body, carry)[5]


_SOLVERS = {"sor": _sor, "ssor": _ssor}
