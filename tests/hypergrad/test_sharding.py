"""Data-parallel inputs over several devices give the single-device hypergradient."""

import os
import subprocess
import sys
from pathlib import Path

from tests.compiling import quick_to_compile

PROGRAM = """
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hypergrad import BilevelProblem, ImplicitDifferentiation, hypergradient

assert jax.device_count() == 4
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 5)), rng.normal(size=64)

def mse(w, lam, batch):
    return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)

def inner(w, lam, batch):
    return mse(w, lam, batch) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

lam = np.linspace(-2, 0, 5)
params = np.linalg.solve(x.T @ x / 64 + np.diag(np.exp(lam)), x.T @ y / 64)
q = np.linalg.solve(x.T @ x / 64 + np.diag(np.exp(lam)), x.T @ (x @ params - y) / 64)
truth = -np.exp(lam) * params * q

mesh = Mesh(np.array(jax.devices()), ("data",))
rows = NamedSharding(mesh, PartitionSpec("data"))
whole = NamedSharding(mesh, PartitionSpec())
batch = (jax.device_put(x, rows), jax.device_put(y, rows))
problem = BilevelProblem(inner, mse)
out = hypergradient(
    problem,
    jax.device_put(params, whole),
    jax.device_put(lam, whole),
    batch,
    batch,
    estimator=ImplicitDifferentiation(),
)
assert len(batch[0].sharding.device_set) == 4
np.testing.assert_allclose(out.grad, truth, rtol=1e-5)
assert out.info.error < 1e-4
print("same")
"""


def test_a_mesh_with_explicit_axes_serves_all_modes():
    environment = {
        **os.environ,
        "XLA_FLAGS": quick_to_compile("--xla_force_host_platform_device_count=4"),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("explicit_mesh.py"))],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.stdout.strip() == "same", done.stdout + done.stderr


def test_four_devices_agree_with_the_closed_form():
    environment = {
        **os.environ,
        "XLA_FLAGS": quick_to_compile("--xla_force_host_platform_device_count=4"),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.stdout.strip() == "same", done.stderr
