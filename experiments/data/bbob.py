"""The 24 noiseless BBOB functions with exact gradients (Hansen, Finck, Ros & Auger 2009, RR-6829).

Written in JAX from their definitions, with instances of our own: random rotations and optima from a
seed, the optimal value at zero. A function takes a point of `[-5, 5]^d` and the arrays of its
instance, so that all instances of one dimension share a compilation.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Instance(NamedTuple):
    """The arrays of one instance in `d` dimensions.

    - `optimum`: `(d,)`.
    - `signs`: `(d,)`, of the functions that have their optimum in a random corner.
    - `r`, `q`: `(d, d)`, rotations.
    - `peaks`, `heights`, `shapes`: `(k, d)`, `(k,)`, `(k, d)`, of Gallagher's peaks.
    """

    optimum: Array
    signs: Array
    r: Array
    q: Array
    peaks: Array
    heights: Array
    shapes: Array


def _exponents(d: int) -> np.ndarray:
    return np.arange(d) / max(d - 1, 1)


def _scaled(alpha: float, d: int) -> np.ndarray:
    """The diagonal `Λ^alpha`."""
    return alpha ** (0.5 * _exponents(d))


def _oscillated(x: Array) -> Array:
    """`T_osz`: small bumps on every scale."""
    size = jnp.where(x == 0, 1.0, jnp.abs(x))
    log = jnp.log(size)
    first, second = jnp.where(x > 0, 10.0, 5.5), jnp.where(x > 0, 7.9, 3.1)
    bumped = jnp.exp(log + 0.049 * (jnp.sin(first * log) + jnp.sin(second * log)))
    return jnp.where(x == 0, 0.0, jnp.sign(x) * bumped)


def _skewed(x: Array, beta: float) -> Array:
    """`T_asy^beta`: the positive side is stretched."""
    safe = jnp.where(x > 0, x, 1.0)
    power = 1.0 + beta * _exponents(len(x)) * jnp.sqrt(safe)
    return jnp.where(x > 0, safe**power, x)


def _outside(x: Array) -> Array:
    """The penalty beyond the box."""
    return jnp.sum(jnp.maximum(jnp.abs(x) - 5.0, 0.0) ** 2)


def _root(x: Array) -> Array:
    """A square root with the derivative zero at zero."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def _waves(z: Array) -> Array:
    return 10.0 * jnp.sum(1.0 - jnp.cos(2 * jnp.pi * z)) + jnp.sum(z**2)


def _rosenbrock_of(z: Array) -> Array:
    return 100.0 * (z[:-1] ** 2 - z[1:]) ** 2 + (z[:-1] - 1.0) ** 2


def _ellipsoid(z: Array) -> Array:
    return jnp.sum(1e6 ** _exponents(len(z)) * z**2)


def _widened(d: int) -> float:
    return max(1.0, np.sqrt(d) / 8)


def sphere(x: Array, i: Instance) -> Array:
    """f1."""
    return jnp.sum((x - i.optimum) ** 2)


def ellipsoid(x: Array, i: Instance) -> Array:
    """f2."""
    return _ellipsoid(_oscillated(x - i.optimum))


def rastrigin(x: Array, i: Instance) -> Array:
    """f3."""
    return _waves(_scaled(10, len(x)) * _skewed(_oscillated(x - i.optimum), 0.2))


def bueche_rastrigin(x: Array, i: Instance) -> Array:
    """f4; in every second coordinate the optimum is on the positive side."""
    odd = np.arange(len(x)) % 2 == 0
    optimum = jnp.where(odd, jnp.abs(i.optimum), i.optimum)
    z = _oscillated(x - optimum)
    return _waves(jnp.where((z > 0) & odd, 10.0, 1.0) * _scaled(10, len(x)) * z) + 100 * _outside(x)


def slope(x: Array, i: Instance) -> Array:
    """f5."""
    z = jnp.where(i.signs * x < 5.0, x, 5.0 * i.signs)
    return jnp.sum(10.0 ** _exponents(len(x)) * (5.0 - i.signs * z))


def attractive_sector(x: Array, i: Instance) -> Array:
    """f6."""
    z = i.q @ (_scaled(10, len(x)) * (i.r @ (x - i.optimum)))
    total = jnp.sum((jnp.where(z * i.optimum > 0, 100.0, 1.0) * z) ** 2)
    return jnp.where(total > 0, _oscillated(jnp.where(total > 0, total, 1.0)) ** 0.9, 0.0)


def step_ellipsoid(x: Array, i: Instance) -> Array:
    """f7, flat almost everywhere."""
    hat = _scaled(10, len(x)) * (i.r @ (x - i.optimum))
    steps = jnp.where(jnp.abs(hat) > 0.5, jnp.floor(0.5 + hat), jnp.floor(0.5 + 10.0 * hat) / 10.0)
    z = i.q @ steps
    bowl = jnp.sum(100.0 ** _exponents(len(x)) * z**2)
    return 0.1 * jnp.maximum(jnp.abs(hat[0]) / 1e4, bowl) + _outside(x)


def rosenbrock(x: Array, i: Instance) -> Array:
    """f8."""
    return jnp.sum(_rosenbrock_of(_widened(len(x)) * (x - 0.75 * i.optimum) + 1.0))


def rotated_rosenbrock(x: Array, i: Instance) -> Array:
    """f9."""
    return jnp.sum(_rosenbrock_of(_widened(len(x)) * (i.r @ x) + 0.5))


def rotated_ellipsoid(x: Array, i: Instance) -> Array:
    """f10."""
    return _ellipsoid(_oscillated(i.r @ (x - i.optimum)))


def discus(x: Array, i: Instance) -> Array:
    """f11."""
    z = _oscillated(i.r @ (x - i.optimum))
    return 1e6 * z[0] ** 2 + jnp.sum(z[1:] ** 2)


def bent_cigar(x: Array, i: Instance) -> Array:
    """f12."""
    z = i.r @ _skewed(i.r @ (x - i.optimum), 0.5)
    return z[0] ** 2 + 1e6 * jnp.sum(z[1:] ** 2)


def sharp_ridge(x: Array, i: Instance) -> Array:
    """f13."""
    z = i.q @ (_scaled(10, len(x)) * (i.r @ (x - i.optimum)))
    return z[0] ** 2 + 100.0 * _root(jnp.sum(z[1:] ** 2))


def different_powers(x: Array, i: Instance) -> Array:
    """f14."""
    z = jnp.abs(i.r @ (x - i.optimum))
    return _root(jnp.sum(z ** (2.0 + 4.0 * _exponents(len(x)))))


def rotated_rastrigin(x: Array, i: Instance) -> Array:
    """f15."""
    z = _skewed(_oscillated(i.r @ (x - i.optimum)), 0.2)
    return _waves(i.r @ (_scaled(10, len(x)) * (i.q @ z)))


def weierstrass(x: Array, i: Instance) -> Array:
    """f16."""
    z = i.r @ (_scaled(0.01, len(x)) * (i.q @ _oscillated(i.r @ (x - i.optimum))))
    k = np.arange(12)
    waves = 0.5**k * jnp.cos(2 * jnp.pi * 3.0**k * (z[:, None] + 0.5))
    lowest = float(np.sum(0.5**k * np.cos(np.pi * 3.0**k)))
    return 10.0 * (jnp.mean(jnp.sum(waves, 1)) - lowest) ** 3 + 10.0 / len(x) * _outside(x)


def _schaffer(x: Array, i: Instance, condition: float) -> Array:
    z = _scaled(condition, len(x)) * (i.q @ _skewed(i.r @ (x - i.optimum), 0.5))
    s = z[:-1] ** 2 + z[1:] ** 2
    safe = jnp.where(s > 0, s, 1.0)
    wave = safe**0.25 * (1.0 + jnp.sin(50.0 * safe**0.1) ** 2)
    return jnp.mean(jnp.where(s > 0, wave, 0.0)) ** 2 + 10.0 * _outside(x)


def schaffer(x: Array, i: Instance) -> Array:
    """f17."""
    return _schaffer(x, i, 10.0)


def schaffer_ill(x: Array, i: Instance) -> Array:
    """f18."""
    return _schaffer(x, i, 1000.0)


def griewank_rosenbrock(x: Array, i: Instance) -> Array:
    """f19."""
    s = _rosenbrock_of(_widened(len(x)) * (i.r @ x) + 0.5)
    return 10.0 * jnp.mean(s / 4000.0 - jnp.cos(s)) + 10.0


def schwefel(x: Array, i: Instance) -> Array:
    """f20."""
    far = 4.2096874633
    hat = 2.0 * i.signs * x
    hat = jnp.concatenate([hat[:1], hat[1:] + 0.25 * (hat[:-1] - far)])
    z = 100.0 * (_scaled(10, len(x)) * (hat - far) + far)
    waves = jnp.mean(z * jnp.sin(_root(jnp.abs(z))))
    return -waves / 100.0 + 4.189828872724339 + 100.0 * _outside(z / 100.0)


def gallagher(x: Array, i: Instance) -> Array:
    """f21 with 101 peaks, f22 with 21."""
    away = (x - i.peaks) @ i.r.T
    height = i.heights * jnp.exp(-jnp.sum(i.shapes * away**2, 1) / (2 * len(x)))
    return _oscillated(10.0 - jnp.max(height)) ** 2 + _outside(x)


def katsuura(x: Array, i: Instance) -> Array:
    """f23."""
    d = len(x)
    z = i.q @ (_scaled(100, d) * (i.r @ (x - i.optimum)))
    powers = 2.0 ** np.arange(1, 33)
    parts = jnp.abs(powers * z[:, None] - jnp.round(powers * z[:, None])) / powers
    inner = 1.0 + np.arange(1, d + 1) * jnp.sum(parts, 1)
    return 10.0 / d**2 * (jnp.prod(inner ** (10.0 / d**1.2)) - 1.0) + _outside(x)


def lunacek(x: Array, i: Instance) -> Array:
    """f24."""
    d, near = len(x), 2.5
    s = 1.0 - 1.0 / (2.0 * np.sqrt(d + 20.0) - 8.2)
    far = -np.sqrt((near**2 - 1.0) / s)
    hat = 2.0 * i.signs * x
    z = i.q @ (_scaled(100, d) * (i.r @ (hat - near)))
    bowls = jnp.minimum(jnp.sum((hat - near) ** 2), d + s * jnp.sum((hat - far) ** 2))
    return bowls + 10.0 * jnp.sum(1.0 - jnp.cos(2 * jnp.pi * z)) + 1e4 * _outside(x)


FUNCTIONS: tuple[Callable[[Array, Instance], Array], ...] = (
    sphere, ellipsoid, rastrigin, bueche_rastrigin, slope, attractive_sector, step_ellipsoid,
    rosenbrock, rotated_rosenbrock, rotated_ellipsoid, discus, bent_cigar, sharp_ridge,
    different_powers, rotated_rastrigin, weierstrass, schaffer, schaffer_ill, griewank_rosenbrock,
    schwefel, gallagher, gallagher, katsuura, lunacek,
)  # fmt: skip

_compiled = {function: jax.jit(jax.value_and_grad(function)) for function in set(FUNCTIONS)}


def instance(number: int, dimension: int, seed: int) -> Instance:
    """The arrays of function `number` (1 to 24), the same for the same seed."""
    rng = np.random.default_rng([seed, number, dimension])
    r, q = (np.linalg.qr(rng.standard_normal((dimension, dimension)))[0] for _ in range(2))
    count, widest = (101, 5.0) if number == 21 else (21, 4.9)
    peaks = rng.uniform(-widest, widest, (count, dimension))
    peaks[0] *= 0.8
    heights = np.r_[10.0, np.linspace(1.1, 9.1, count - 1)]
    condition = 1000.0 ** (2 * rng.permutation(count - 1) / (count - 2))
    condition = np.r_[1000.0 if number == 21 else 1000.0**2, condition]
    order = rng.permuted(np.tile(_exponents(dimension), (count, 1)), axis=1)
    # `C = Λ^a / a^(1/4)`, and `Λ^a` has the entries `a^(k/2)`.
    shapes = condition[:, None] ** (0.5 * order - 0.25)
    return Instance(
        rng.uniform(-4, 4, dimension), rng.choice([-1.0, 1.0], dimension), r, q, peaks, heights,
        shapes,
    )  # fmt: skip


def best_place(number: int, arrays: Instance) -> np.ndarray:
    """The point of value zero."""
    optimum, signs, d = arrays.optimum, arrays.signs, len(arrays.optimum)
    places = {
        4: np.where(np.arange(d) % 2 == 0, np.abs(optimum), optimum),
        5: 5.0 * signs,
        8: 0.75 * optimum,
        9: arrays.r.T @ np.full(d, 0.5 / _widened(d)),
        19: arrays.r.T @ np.full(d, 0.5 / _widened(d)),
        20: 4.2096874633 / 2 * signs,
        21: arrays.peaks[0],
        22: arrays.peaks[0],
        24: 1.25 * signs,
    }
    return np.asarray(places.get(number, optimum))


def evaluate(number: int, arrays: Instance, x: np.ndarray) -> tuple[float, np.ndarray]:
    """Value above the optimum and gradient at a point of `[-5, 5]^d`."""
    value, gradient = _compiled[FUNCTIONS[number - 1]](jnp.asarray(x, float), arrays)
    return float(value), np.asarray(gradient, float)
