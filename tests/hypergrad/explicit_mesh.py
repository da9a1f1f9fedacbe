"""Run by `test_sharding`: every mode on a mesh with explicit axes, against one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import hypergrad as hg
from hypergrad.linear import (
    CG,
    GMRES,
    MINRES,
    PCG,
    Dense,
    Jacobi,
    NormalCG,
    RecyclingCG,
)
from hypergrad.outer import HOAG, SOBA, Alternating, Minibatches, run

jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 4
rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 8)), rng.normal(size=32)


def mse(w, lam, batch):
    return jnp.mean((batch[0] @ w - batch[1]) ** 2)


def inner(w, lam, batch):
    return mse(w, lam, batch) + jnp.sum(jnp.exp(lam) * w**2)


problem = hg.BilevelProblem(inner, mse)
start, lam = np.zeros(8), np.full(8, -1.0)
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))


def put(a, *spec):
    return jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))


def sgd(lam):
    return optax.sgd(0.1 + 0 * jnp.sum(lam))


def plain_sgd(lam):
    return optax.sgd(0.1)


here = (start, lam, (x, y))
ROWS = (put(start), put(lam), (put(x, "data", None), put(y, "data")))
ESTIMATORS = {
    "newton": hg.ImplicitDifferentiation(hg.Newton()),
    "unrolled": hg.Unrolled(sgd, 20),
    "unrolled in blocks": hg.Unrolled(sgd, 50),
    "unrolled, the optimizer without hyperparameters": hg.Unrolled(plain_sgd, 20),
    "forward": hg.ForwardUnrolled(sgd, 20),
}
ALGORITHMS = {"soba": (SOBA(), Minibatches(8))}


def apart(w, lam, batch):
    return jnp.sum(batch * (w - 1) ** 2) + jnp.sum(jnp.exp(lam) * w**2)


def distance(w, lam, batch):
    return jnp.sum((w - 0.5) ** 2)


# Parameters divided among the devices, and hyperparameters with them.
divided = hg.BilevelProblem(apart, distance)
WEIGHTS = np.linspace(1, 3, 8)
SOLVERS = [CG(), PCG(Jacobi()), MINRES(), GMRES(), RecyclingCG(), NormalCG(), Dense()]
DIVIDED = {
    **{
        type(solver).__name__: hg.ImplicitDifferentiation(hg.Newton(), solver) for solver in SOLVERS
    },
    "error by solves": hg.ImplicitDifferentiation(
        hg.Newton(), CG(), error_estimate=hg.ErrorEstimate(dense=0)
    ),
    "unrolled": hg.Unrolled(plain_sgd, 20),
}
DRIVERS = {"HOAG": HOAG(DIVIDED["CG"]), "Alternating": Alternating(DIVIDED["CG"], optax.sgd(0.1))}
failed = []
for name, estimator in DIVIDED.items():
    try:
        one = hg.hypergradient(divided, start, lam, WEIGHTS, None, estimator=estimator)
        given = (put(start, "data"), put(lam, "data"), put(WEIGHTS, "data"))
        two = hg.hypergradient(divided, *given, None, estimator=estimator)
        np.testing.assert_allclose(jax.device_get(two.grad), one.grad, rtol=1e-5, atol=1e-9)
        assert two.info.error < 1e-3, two.info.error
    except Exception as error:
        failed.append(f"{name}, divided: {type(error).__name__} {str(error)[:300]}")
for name, algorithm in DRIVERS.items():
    try:
        one = run(divided, algorithm, start, lam, WEIGHTS, None, steps=2)
        two = run(divided, algorithm, *given, None, steps=2)
        np.testing.assert_allclose(jax.device_get(two.hparams), one.hparams, rtol=1e-5)
    except Exception as error:
        failed.append(f"run {name}, divided: {type(error).__name__} {str(error)[:300]}")
for name, estimator in ESTIMATORS.items():
    try:
        one = hg.hypergradient(problem, *here, (x, y), estimator=estimator)
        two = hg.hypergradient(problem, *ROWS, ROWS[2], estimator=estimator)
        np.testing.assert_allclose(jax.device_get(two.grad), one.grad, rtol=1e-5, atol=1e-9)
    except Exception as error:
        failed.append(f"{name}: {type(error).__name__} {str(error)[:300]}")
for name, (algorithm, sampler) in ALGORITHMS.items():
    try:
        one = run(problem, algorithm, *here, (x, y), steps=2, sampler=sampler)
        two = run(problem, algorithm, *ROWS, ROWS[2], steps=2, sampler=sampler)
        assert one.status == two.status
        np.testing.assert_allclose(jax.device_get(two.hparams), one.hparams, rtol=1e-5)
    except Exception as error:
        failed.append(f"run {name}: {type(error).__name__} {str(error)[:300]}")
print("\n".join(failed) or "same")
