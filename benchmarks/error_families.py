"""The families of inner problems that `benchmarks.error_coverage` holds the error estimate against.

Each takes a random generator and returns a `Case`. Within a family all cases have the same shapes
and the same losses; what differs is data, so that one program serves all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import BilevelProblem, ErrorEstimate, FixedPoint, ProximalStep
from hypergrad.unrolled import StepFunction


class Case(NamedTuple):
    """A problem, a point near its solution, and what else its truth needs.

    - `levels`: how far from the solution it is tried, relative to the solution's norm.
    - `solved`: the start is the solution itself.
    - `truth`: the hypergradient, where it is known in closed form.
    - `dtype`: of everything that the estimator gets.
    - `estimate`: how the error is estimated.
    - `seeds`: at most so many are tried, where a case takes long.
    """

    problem: BilevelProblem
    start: Any
    hparams: Any
    train: Any = None
    valid: Any = None
    levels: tuple[float, ...] = (0.0, 1e-8, 1e-4, 1e-2, 0.1)
    solved: bool = False
    truth: Any = None
    dtype: Any = jnp.float64
    key: Any = None
    estimate: ErrorEstimate = ErrorEstimate()
    seeds: int = 100


def _halves(*arrays: np.ndarray) -> tuple:
    half = len(arrays[0]) // 2
    first = tuple(jnp.asarray(a[:half]) for a in arrays)
    return first, tuple(jnp.asarray(a[half : 2 * half]) for a in arrays)


def _penalised(loss: Callable) -> Callable:
    return lambda w, lam, b: loss(w, lam, b) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def _squares(w: Any, lam: Any, b: Any) -> Any:
    return 0.5 * jnp.mean((b[0] @ w - b[1]) ** 2)


def _features(rng: np.random.Generator, rows: int, columns: int, spread: float) -> np.ndarray:
    mix = rng.normal(size=(columns, columns)) / columns**0.5
    return rng.normal(size=(rows, columns)) @ np.diag(np.geomspace(1, spread, columns)) @ mix


RIDGE = BilevelProblem(_penalised(_squares), _squares)


def ridge(rng: np.random.Generator) -> Case:
    """Linear regression, correlated features, a log penalty a feature."""
    x = _features(rng, 80, 15, 0.05)
    y = x @ rng.normal(size=15) + 0.3 * rng.normal(size=80)
    return Case(RIDGE, jnp.zeros(15), jnp.asarray(rng.normal(size=15) - 4), *_halves(x, y))


def _cross_entropy(w: Any, lam: Any, b: Any) -> Any:
    logits = jax.nn.log_softmax(b[0] @ w)
    return -jnp.mean(jnp.take_along_axis(logits, b[1][:, None], axis=1))


LOGISTIC = BilevelProblem(_penalised(_cross_entropy), _cross_entropy)


def logistic(rng: np.random.Generator) -> Case:
    """Multinomial logistic regression, a log penalty a weight."""
    x = rng.normal(size=(120, 6)) * np.geomspace(2, 0.2, 6)
    y = np.argmax(x @ rng.normal(size=(6, 3)) + rng.gumbel(size=(120, 3)), axis=1)
    lam = jnp.asarray(0.5 * rng.normal(size=(6, 3)) - 4)
    return Case(LOGISTIC, jnp.zeros((6, 3)), lam, *_halves(x, y))


LOGISTIC_MAP = BilevelProblem(
    lambda w, h, b: jnp.sum(w**2),
    lambda w, h, b: jnp.sum(w * jnp.arange(1, w.size + 1, dtype=w.dtype)),
)
MAP_STEP = StepFunction(lambda w, state, h, b: (h * w * (1 - w), state))


def logistic_map(rng: np.random.Generator) -> Case:
    """No training but a chaotic run: three starts of the logistic map, its rate."""
    return Case(LOGISTIC_MAP, jnp.asarray(rng.uniform(0.1, 0.9, 3)), jnp.asarray(3.9))


def _poisson(w: Any, lam: Any, b: Any) -> Any:
    return jnp.mean(jnp.exp(b[0] @ w) - b[1] * (b[0] @ w))


POISSON = BilevelProblem(_penalised(_poisson), _poisson)


def poisson(rng: np.random.Generator) -> Case:
    """Poisson regression: curvature that grows exponentially."""
    x = _features(rng, 120, 8, 0.1)
    y = rng.poisson(np.exp(np.clip(x @ rng.normal(size=8), None, 3))).astype(float)
    return Case(POISSON, jnp.zeros(8), jnp.asarray(rng.normal(size=8) - 4), *_halves(x, y))


def _cox(w: Any, lam: Any, b: Any) -> Any:
    score = b[0] @ w  # rows by falling time: those before are at risk
    return -jnp.mean(b[1] * (score - jax.lax.cumlogsumexp(score)))


COX = BilevelProblem(lambda w, lam, b: _cox(w, lam, b) + jnp.exp(lam) * jnp.sum(w**2), _cox)


def cox(rng: np.random.Generator) -> Case:
    """Cox's partial likelihood, one penalty for all."""
    x = rng.normal(size=(100, 6))
    event = (rng.uniform(size=100) < 0.6).astype(float)
    return Case(COX, jnp.zeros(6), jnp.asarray(rng.normal() - 3), *_halves(x, event))


def _hinge(w: Any, lam: Any, b: Any) -> Any:
    return jnp.mean(jnp.maximum(0, 1 - b[1] * (b[0] @ w)) ** 2)


HINGE = BilevelProblem(_penalised(_hinge), _hinge)


def hinge(rng: np.random.Generator) -> Case:
    """A support vector machine with squared hinge: curvature that jumps."""
    x = rng.normal(size=(100, 8))
    y = np.sign(x @ rng.normal(size=8) + rng.normal(size=100))
    lam = jnp.asarray(rng.normal(size=8) - 3)
    return Case(HINGE, jnp.zeros(8), lam, *_halves(x, y), levels=(0.0, 1e-8, 1e-5, 1e-3))


def _factors(w: Any, lam: Any, b: Any) -> Any:
    return jnp.mean(b[0] * (w["u"] @ w["v"].T - b[1]) ** 2)


FACTORS = BilevelProblem(
    lambda w, lam, b: (
        _factors(w, lam, b) + jnp.exp(lam) * (jnp.mean(w["u"] ** 2) + jnp.mean(w["v"] ** 2))
    ),
    _factors,
)


def factorisation(rng: np.random.Generator) -> Case:
    """Matrix factorisation: a Hessian singular by the rotations of its factors."""
    u, v = rng.normal(size=(8, 2)), rng.normal(size=(6, 2))
    seen = (rng.uniform(size=(2, 8, 6)) < 0.8).astype(float)
    target = u @ v.T + 0.1 * rng.normal(size=(2, 8, 6))
    train, valid = ((jnp.asarray(seen[i]), jnp.asarray(target[i])) for i in range(2))
    start = {"u": jnp.asarray(u), "v": jnp.asarray(v)}
    return Case(FACTORS, start, jnp.asarray(-4.0), train, valid, levels=(0.0, 1e-8, 1e-6, 1e-4))


def _variation(w: Any, lam: Any, b: Any) -> Any:
    jumps = jnp.sum(jnp.sqrt(jnp.diff(w) ** 2 + 1e-6))
    return 0.5 * jnp.sum((w - b) ** 2) + jnp.exp(lam) * jumps


VARIATION = BilevelProblem(_variation, lambda w, lam, b: 0.5 * jnp.sum((w - b) ** 2))


def total_variation(rng: np.random.Generator) -> Case:
    """Denoising by total variation, rounded at 1e-3: curvatures from 1 to 1e3."""
    clean = np.repeat(rng.normal(size=5), 6)
    data = [jnp.asarray(clean + 0.2 * rng.normal(size=30)) for _ in range(2)]
    return Case(VARIATION, data[0], jnp.asarray(-1.0), *data, levels=(0.0, 1e-10, 1e-8, 1e-6))


def _soft(w: Any, lam: Any, step: Any) -> Any:
    return jnp.sign(w) * jnp.maximum(jnp.abs(w) - step * jnp.exp(lam), 0)


LASSO = BilevelProblem(None, _squares, ProximalStep(_squares, _soft, 0.1, polyhedral=True))


def lasso(rng: np.random.Generator) -> Case:
    """The Lasso on its support."""
    x = rng.normal(size=(80, 10))
    y = x[:, :4] @ rng.normal(size=4) + 0.3 * rng.normal(size=80)
    train, valid = _halves(x, y)
    return Case(LASSO, jnp.zeros(10), jnp.asarray(-2.0), train, valid, levels=(0.0,))


def _evidence(w: Any, lam: Any, b: Any) -> Any:
    x, y = b
    gap = jnp.sum((x[:, None] - x[None]) ** 2 * jnp.exp(w[1:]), -1)
    kernel = jnp.exp(w[0] - 0.5 * gap) + jnp.exp(lam[0]) * jnp.eye(len(y))
    root = jnp.linalg.cholesky(kernel)
    half = jax.scipy.linalg.solve_triangular(root, y, lower=True)
    return 0.5 * jnp.sum(half**2) + jnp.sum(jnp.log(jnp.diag(root)))


EVIDENCE = BilevelProblem(
    lambda w, lam, b: _evidence(w, lam, b) + 0.5 * jnp.exp(lam[1]) * jnp.sum(w**2), _evidence
)


def evidence(rng: np.random.Generator) -> Case:
    """The evidence of a Gaussian process: matrices of condition 1e4 inside the losses."""
    x = rng.uniform(-1, 1, size=(50, 2))
    y = np.sin(3 * x[:, 0]) + x[:, 1] + 0.05 * rng.normal(size=50)
    return Case(EVIDENCE, jnp.ones(3), jnp.asarray([-5.0, -2.0]), *_halves(x, y))


def _deficient(w: Any, lam: Any, b: Any) -> Any:
    return 0.5 * jnp.sum((b[0] @ w - jnp.exp(lam) * b[1]) ** 2)


DEFICIENT = BilevelProblem(_deficient, lambda w, lam, b: _squares(b[0] @ w, lam, b[1:]))


def deficient(rng: np.random.Generator) -> Case:
    """Least squares of deficient rank: singular, and consistent."""
    a, b = rng.normal(size=(6, 12)), rng.normal(size=6)
    train = jnp.asarray(a), jnp.asarray(b)
    valid = jnp.asarray(a), jnp.asarray(rng.normal(size=(5, 6))), jnp.asarray(rng.normal(size=5))
    truth = _line(lambda h: jnp.exp(h) * jnp.linalg.pinv(train[0]) @ train[1], valid)
    start = jnp.exp(0.3) * jnp.linalg.pinv(train[0]) @ train[1]
    return Case(
        DEFICIENT, start, jnp.asarray(0.3), train, valid, solved=True, truth=truth, levels=(0.0,)
    )


def _line(path: Callable, valid: Any) -> Any:
    return jax.grad(lambda h: DEFICIENT.outer(path(h), h, valid))(0.3)


SADDLE = BilevelProblem(
    lambda w, lam, b: 0.5 * w @ (b[0] * w) + jnp.sum(jnp.exp(lam) * w * b[1]),
    lambda w, lam, b: 0.5 * jnp.sum((w - b) ** 2),
)


def saddle(rng: np.random.Generator) -> Case:
    """An exact saddle point: the stationary point has a derivative, and no minimum is there."""
    values = rng.normal(size=12) + np.sign(rng.normal(size=12))
    train = jnp.asarray(values), jnp.asarray(rng.normal(size=12))
    lam = jnp.asarray(0.3 * rng.normal(size=12))
    start = -jnp.exp(lam) * train[1] / train[0]
    valid = jnp.asarray(rng.normal(size=12))
    return Case(SADDLE, start, lam, train, valid, levels=(0.0,), solved=True)


def _spectrum(w: Any, lam: Any, b: Any) -> Any:
    q, values, target, tilt = b
    rotated = q.T @ w
    return 0.5 * jnp.sum(values * jnp.exp(lam * tilt) * rotated**2) - target @ w


SPECTRUM = BilevelProblem(_spectrum, lambda w, lam, b: b @ w)


def spectrum(rng: np.random.Generator, size: int = 60, dtype: Any = jnp.float64) -> Case:
    """A quadratic of condition 1e2 to 1e12, eigenvalues evenly spaced on a log scale."""
    worst = 12 if dtype == jnp.float64 else 5
    values = np.geomspace(10.0 ** -rng.uniform(2, worst), 1, size)
    q = np.linalg.qr(rng.normal(size=(size, size)))[0]
    # Rounded to the digits that the estimator sees; the closed form in float64.
    q, values = (np.asarray(jnp.asarray(a, dtype), float) for a in (q, values))
    w, c, tilt = q @ rng.normal(size=size), rng.normal(size=size), np.cos(np.arange(size))
    train = tuple(jnp.asarray(a, dtype) for a in (q, values, (q * values) @ (q.T @ w), tilt))
    c = jnp.asarray(c, dtype)
    levels = (0.0, 1e-10, 1e-4) if dtype == jnp.float64 else (0.0, 1e-3)
    lam = jnp.asarray(0.0)
    if dtype != jnp.float64:
        return Case(SPECTRUM, jnp.zeros(size), lam, train, c, levels=levels, dtype=dtype)
    # The condition of the Hessian cancels in the closed form.
    truth = -jnp.sum((q.T @ c) * tilt * (q.T @ w))
    start = jnp.asarray(w)
    return Case(SPECTRUM, start, lam, train, c, levels=levels, solved=True, truth=truth)


def spectrum_large(rng: np.random.Generator) -> Case:
    """The same with 300 parameters, for which no matrix is formed."""
    return spectrum(rng, 300)._replace(seeds=3)


def spectrum_single(rng: np.random.Generator) -> Case:
    """The same in float32, condition 1e2 to 1e5."""
    return spectrum(rng, 40, jnp.float32)


def _weak(w: Any, lam: Any, b: Any) -> Any:
    return 0.5 * jnp.sum(b[0] * w**2) - lam * jnp.sum(b[1] * w)


WEAK = BilevelProblem(_weak, lambda w, lam, b: jnp.sum(b * w))


def weak(rng: np.random.Generator, size: int = 20) -> Case:
    """One nearly free direction, of curvature 1e-4 to 1e-10, that the cotangent hardly has."""
    free = 10.0 ** -rng.uniform(4, 10)
    values = np.append(rng.uniform(0.5, 1.5, size=size), free)
    push = np.append(rng.normal(size=size), 10.0 ** rng.uniform(-1, 2))
    c = np.append(rng.normal(size=size), free * 10.0 ** rng.uniform(-1, 2))
    data = jnp.asarray(values), jnp.asarray(push)
    start, truth = jnp.asarray(0.3 * push / values), jnp.sum(c * push / values)
    lam, c = jnp.asarray(0.3), jnp.asarray(c)
    return Case(WEAK, start, lam, data, c, levels=(0.0,), solved=True, truth=truth)


def weak_large(rng: np.random.Generator) -> Case:
    """The same with 300 parameters."""
    return weak(rng, 299)


QUARTIC = BilevelProblem(
    lambda w, lam, b: jnp.sum((w - lam) ** 4) + 0.5 * jnp.sum((w[:1] - lam[:1]) ** 2),
    lambda w, lam, b: jnp.sum(b * w),
)


def singular_root(rng: np.random.Generator) -> Case:
    """A root at which the Hessian vanishes in three of four directions: `w* = λ`."""
    c, lam = jnp.asarray(rng.normal(size=4)), jnp.asarray(rng.normal(size=4))
    return Case(QUARTIC, lam, lam, None, c, levels=(0.0, 1e-4, 1e-2), solved=True, truth=c)


def half(rng: np.random.Generator) -> Case:
    """Ridge with everything in bfloat16."""
    x = rng.normal(size=(60, 5))
    y = x @ rng.normal(size=5) + 0.3 * rng.normal(size=60)
    lam = jnp.asarray(rng.normal(size=5) - 1)
    return Case(RIDGE, jnp.zeros(5), lam, *_halves(x, y), levels=(0.0, 3e-2), dtype=jnp.bfloat16)


def half_inside(rng: np.random.Generator) -> Case:
    """Ridge in float32 whose losses compute in bfloat16."""
    return half(rng)._replace(problem=HALF, dtype=jnp.float32, levels=(0.0,))


def _inside(w: Any, lam: Any, b: Any) -> Any:
    if w.dtype == jnp.float64:
        return _squares(w, lam, b)
    fitted = b[0].astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)
    return 0.5 * jnp.mean((fitted.astype(w.dtype) - b[1]) ** 2)


HALF = BilevelProblem(_penalised(_inside), _inside)


def single(rng: np.random.Generator) -> Case:
    """Logistic regression in float32."""
    return logistic(rng)._replace(dtype=jnp.float32, levels=(0.0, 1e-4, 1e-2))


def _in_units(w: Any, lam: Any, b: Any) -> Any:
    x, y, units = b
    ridge = 0.5 * jnp.exp(lam) * jnp.sum((w * units) ** 2)
    return _squares(w * units, lam, (x, y)) + ridge


UNITS = BilevelProblem(_in_units, lambda w, lam, b: _squares(w * b[2], lam, b[:2]))


def units(rng: np.random.Generator, size: int = 12) -> Case:
    """Parameters in units from three millimetres to three hundred metres, in float32."""
    x = rng.normal(size=(60, size))
    y = x @ rng.normal(size=size) + 0.3 * rng.normal(size=60)
    scales = 10.0 ** rng.uniform(-2.5, 2.5, size)
    train, valid = _halves(x, y)
    start = jnp.zeros(size)
    case = Case(UNITS, start, jnp.asarray(-2.0), (*train, scales), (*valid, scales))
    return case._replace(dtype=jnp.float32, levels=(0.0, 1e-4, 1e-2))


def _dropped(w: Any, lam: Any, b: Any, key: Any) -> Any:
    mask = jax.random.bernoulli(key, 0.7, b[0].shape) / 0.7
    return _squares(w, lam, (b[0] * mask, b[1]))


DROPOUT = BilevelProblem(
    lambda w, lam, b, key: _dropped(w, lam, b, key) + 0.5 * jnp.sum(jnp.exp(lam) * w**2),
    lambda w, lam, b, key: _squares(w, lam, b),
    stochastic=True,
)


def stochastic(rng: np.random.Generator) -> Case:
    """Ridge with dropped inputs: the truth is that of the same key."""
    return ridge(rng)._replace(problem=DROPOUT, key=jax.random.key(int(rng.integers(1000))))


DEQ = BilevelProblem(
    None,
    lambda w, lam, b: jnp.mean((w - b) ** 2),
    FixedPoint(lambda w, lam, b: jnp.tanh(lam @ w + b)),
)


def equilibrium(rng: np.random.Generator) -> Case:
    """A deep equilibrium layer: a fixed point, not symmetric."""
    lam = rng.normal(size=(8, 8))
    lam *= 0.9 / np.linalg.norm(lam, 2)
    data = [jnp.asarray(rng.normal(size=8)) for _ in range(2)]
    return Case(DEQ, jnp.zeros(8), jnp.asarray(lam), *data)


def network(rng: np.random.Generator) -> Case:
    """A tanh network near one of its minima, a log penalty a layer."""
    x = rng.normal(size=(60, 3))
    y = np.sin(x[:, 0]) + 0.3 * x[:, 1] ** 2
    start = {
        "a": jnp.asarray(0.7 * rng.normal(size=(3, 5))),
        "b": jnp.asarray(0.3 * rng.normal(size=5)),
        "c": jnp.asarray(0.7 * rng.normal(size=(5, 1))),
    }
    lam = {"a": jnp.asarray(-5.0), "b": jnp.asarray(-4.0), "c": jnp.asarray(-4.5)}
    return Case(NETWORK, start, lam, *_halves(x, y), levels=(0.0, 1e-6, 1e-4, 1e-3))


def _fit(p: Any, lam: Any, b: Any) -> Any:
    return jnp.mean(((jnp.tanh(b[0] @ p["a"] + p["b"]) @ p["c"])[:, 0] - b[1]) ** 2)


NETWORK = BilevelProblem(
    lambda p, lam, b: (
        _fit(p, lam, b) + sum(jnp.exp(lam[name]) * jnp.sum(p[name] ** 2) for name in p)
    ),
    _fit,
)


# No matrix is formed, however small it is: what larger problems get.
PRODUCTS_ONLY = ErrorEstimate(dense=0)


def _without_matrix(make: Callable) -> Callable:
    def family(rng: np.random.Generator) -> Case:
        return make(rng)._replace(estimate=PRODUCTS_ONLY)

    family.__name__ = f"{make.__name__}_products"
    return family


FAMILIES: tuple[Callable[[np.random.Generator], Case], ...] = (
    ridge,
    logistic,
    poisson,
    cox,
    hinge,
    factorisation,
    total_variation,
    lasso,
    evidence,
    deficient,
    saddle,
    spectrum,
    spectrum_large,
    spectrum_single,
    weak,
    weak_large,
    singular_root,
    half,
    half_inside,
    single,
    units,
    stochastic,
    equilibrium,
    network,
    *(
        _without_matrix(make)
        for make in (
            logistic,
            factorisation,
            spectrum,
            weak,
            units,
            singular_root,
            equilibrium,
            network,
        )
    ),
)
