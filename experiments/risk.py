"""A photograph denoised without seeing a clean one: the penalty by Stein's estimate of the risk.

Total variation, slightly smoothed, removes Gaussian noise from a crop of a photograph. Stein's
unbiased estimate of the risk needs the noisy crop, the size of the noise, and how the denoised crop
moves with the noisy one: a divergence, by random probes through the implicit solution. A search is
given the estimate and its hypergradient. An oracle that sees the clean crop is what it is measured
by. On a smaller crop the probes are compared with the exact divergence, and the hypergradient with
central differences of denoising anew.

Deledalle, Vaiter, Fadili and Peyré, "Stein Unbiased GrAdient estimator of the Risk (SUGAR) for
Multiple Parameter Selection" (SIAM Journal on Imaging Sciences 2014).
"""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_sample_images

from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import Hypergradient, ImplicitDifferentiation, Newton, hypergradient
from hypergrad.linear import CG
from hypergrad.risk import SURE
from strategies import Float, report
from strategies.local import minimize

#: Standard deviation of the noise; pixels go from 0 to 1.
SIGMA = 0.1
#: Rounds the corner of the absolute value of a difference.
ROUND = 0.02
#: Log penalties that the oracle may choose from; the search is between the ends.
GRID = np.linspace(-5.0, -0.5, 19)
#: Pixels along an edge where the divergence is computed exactly.
SMALL = 16
LINEAR = CG(tol=1e-8, max_steps=300)
SOLVER = Newton(tol=1e-8, max_steps=30, linear_solver=LINEAR)
ESTIMATOR = ImplicitDifferentiation(SOLVER, LINEAR, error_estimate=False)


def total_variation(u: jax.Array, log_penalty: jax.Array, y: jax.Array) -> jax.Array:
    """Squared distance from the data, and smoothed absolute differences of neighbours."""
    across = jnp.diff(u, axis=1, append=u[:, -1:])
    down = jnp.diff(u, axis=0, append=u[-1:])
    rough = jnp.sum(jnp.sqrt(across**2 + down**2 + ROUND**2))
    return 0.5 * jnp.sum((u - y) ** 2) + jnp.exp(log_penalty) * rough


def judged(problem: SURE, noisy: jax.Array, log_penalty: float) -> Hypergradient:
    """Stein's estimate of the risk, its slope, and the denoised crop (`state.params`)."""
    return hypergradient(
        problem, noisy, jnp.asarray(log_penalty, float), noisy, noisy, estimator=ESTIMATOR
    )


def crop(seed: int, size: int) -> tuple[jax.Array, jax.Array]:
    """A clean and a noisy piece of a photograph of a temple."""
    rng = np.random.default_rng(seed)
    grey = load_sample_images().images[0].mean(axis=2)[::2, ::2] / 255
    row, column = (int(rng.integers(0, n - size)) for n in grey.shape)
    clean = grey[row : row + size, column : column + size]
    return jnp.asarray(clean), jnp.asarray(clean + SIGMA * rng.standard_normal(clean.shape))


def decibels(clean: jax.Array, denoised: jax.Array) -> float:
    """Peak signal-to-noise ratio."""
    return float(-10 * jnp.log10(jnp.mean((denoised - clean) ** 2)))


@experiment(
    paper="Deledalle et al. 2014, arXiv:1405.1164",
    x64=True,
    options=[
        Option("size", 64, quick=SMALL, help="pixels along an edge"),
        Option("trials", 10, quick=8, help="trials of the search"),
        Option("probes", 4, help="probes of the divergence"),
    ],
    claims=[
        Claim("oracle", "below an oracle that sees the clean crop, dB", at_most=0.1),
        Claim("divergence", "4 probes against the exact divergence, relative", at_most=0.1),
        Claim("gradient", "hypergradient against central differences, relative", at_most=1e-4),
    ],
)
def run_experiment(context: Context) -> None:
    """Denoise for every penalty, and search."""
    options = context.options
    clean, noisy = crop(options.seed, options.size)
    key = jax.random.key(options.seed)
    problem = SURE(
        total_variation, lambda u, _: u, SIGMA, SOLVER, LINEAR, probes=options.probes, key=key
    )
    with context.progress("denoised", total=len(GRID) + options.trials) as bar:

        def look(log_penalty: float) -> Hypergradient:
            found = judged(problem, noisy, log_penalty)
            bar.advance()
            return found

        def trial(config: dict) -> dict:
            found = look(config["log_penalty"])
            return report(float(found.value), {"log_penalty": float(found.grad)})

        grid = [look(value) for value in GRID]
        space = {"log_penalty": Float(GRID[0], GRID[-1])}
        chosen = minimize(trial, space, trials=options.trials, progress=False).best_config
    denoised = judged(problem, noisy, chosen["log_penalty"]).state.params
    truth = [float(jnp.mean((found.state.params - clean) ** 2)) for found in grid]
    best = max(decibels(clean, found.state.params) for found in grid)
    context.measure("oracle", best - decibels(clean, denoised))

    _, small = crop(options.seed, SMALL)
    at, step = float(GRID[len(GRID) // 2]), 1e-4
    found, up, down = (judged(problem, small, at + shift) for shift in (0.0, step, -step))
    difference = float(up.value - down.value) / (2 * step)
    context.measure("gradient", abs(float(found.grad) / difference - 1))
    u = found.state.params
    # The solution's derivative in the data is the inverse of the Hessian, whose trace is wanted.
    hessian = jax.jit(jax.hessian(total_variation))(u, jnp.asarray(at), small)
    inverse = np.linalg.inv(np.asarray(hessian).reshape(small.size, small.size))
    exact = float(np.trace(inverse))
    squares = float(jnp.sum((small - u) ** 2))
    probed = (float(found.value) + small.size * SIGMA**2 - squares) / (2 * SIGMA**2)
    context.measure("divergence", abs(probed / exact - 1))
    beside = np.sum(inverse**2) - np.sum(np.diagonal(inverse) ** 2)
    deviation = np.sqrt(2 * beside / options.probes) / exact
    context.say(
        f"The standard deviation of {options.probes} probes on {SMALL} by {SMALL} pixels is "
        f"{deviation:.1%} of the divergence, by the exact matrix; on a larger crop it is smaller."
    )

    context.table(
        "denoising",
        [
            {"penalty": "none", "log penalty": None, "PSNR": decibels(clean, noisy)},
            {
                "penalty": "by the risk estimate",
                "log penalty": chosen["log_penalty"],
                "PSNR": decibels(clean, denoised),
            },
            {
                "penalty": "oracle",
                "log penalty": float(GRID[int(np.argmin(truth))]),
                "PSNR": best,
            },
        ],
    )
    context.plot(
        "risk",
        {
            "estimate, from the noisy crop": Curve(
                GRID.tolist(), [float(found.value) / noisy.size for found in grid]
            ),
            "truth, from the clean one": Curve(GRID.tolist(), truth),
        },
        x="log penalty",
        y="squared error of a pixel",
    )


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
