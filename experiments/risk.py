"""A photograph denoised without seeing a clean one: the penalty by Stein's estimate of the risk.

Total variation, slightly smoothed, removes Gaussian noise from a crop of a photograph. Stein's
unbiased estimate of the risk needs the noisy crop, the size of the noise, and how the denoised crop
moves with the noisy one: a divergence, by random probes through the implicit solution. An outer
algorithm descends along its hypergradient. An oracle that sees the clean crop is what it is
measured by. On a smaller crop the probes are compared with the exact divergence, and the
hypergradient with central differences of denoising anew.

Deledalle, Vaiter, Fadili and Peyré, "Stein Unbiased GrAdient estimator of the Risk (SUGAR) for
Multiple Parameter Selection" (SIAM Journal on Imaging Sciences 2014).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_sample_images

from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem, ImplicitDifferentiation, Newton, hypergradient
from hypergrad.implicit import implicit_solver
from hypergrad.linear import CG
from hypergrad.outer import Alternating, run
from hypergrad.risk import SURE, divergence

#: Standard deviation of the noise; pixels go from 0 to 1.
SIGMA = 0.1
#: Rounds the corner of the absolute value of a difference.
ROUND = 0.02
#: Log penalties that the oracle may choose from, and where the descent begins.
GRID, START = np.linspace(-5.0, -0.5, 19), -4.0
LINEAR = CG(tol=1e-8, max_steps=300)
SOLVER = Newton(tol=1e-8, max_steps=30, linear_solver=LINEAR)


def total_variation(u: jax.Array, log_penalty: jax.Array, y: jax.Array) -> jax.Array:
    """Squared distance from the data, and smoothed absolute differences of neighbours."""
    across = jnp.diff(u, axis=1, append=u[:, -1:])
    down = jnp.diff(u, axis=0, append=u[-1:])
    rough = jnp.sum(jnp.sqrt(across**2 + down**2 + ROUND**2))
    return 0.5 * jnp.sum((u - y) ** 2) + jnp.exp(log_penalty) * rough


def problem(probes: int | None, seed: int) -> SURE:
    """Stein's estimate of the risk of the denoised image."""
    return SURE(
        total_variation,
        lambda u, log_penalty: u,
        SIGMA,
        SOLVER,
        LINEAR,
        probes=probes,
        key=jax.random.key(seed),
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
        Option("size", 64, quick=24, help="pixels along an edge"),
        Option("steps", 40, quick=20, help="steps of the penalty"),
        Option("probes", 4, help="probes of the divergence"),
    ],
    claims=[
        Claim("oracle", "below an oracle that sees the clean crop, dB", at_most=0.1),
        Claim("divergence", "4 probes against the exact divergence, relative", at_most=0.1),
        Claim("gradient", "hypergradient against central differences, relative", at_most=1e-4),
    ],
)
def run_experiment(context: Context) -> None:
    """Denoise for every penalty, and descend."""
    options = context.options
    clean, noisy = crop(options.seed, options.size)
    solve = jax.jit(
        implicit_solver(BilevelProblem(total_variation, total_variation), SOLVER, LINEAR)
    )
    judged = problem(options.probes, options.seed)
    risk = jax.jit(lambda u, log_penalty: judged.outer_loss(u, log_penalty, noisy)[0])
    with context.progress("steps", total=2) as bar:
        images = [solve(noisy, jnp.asarray(value), noisy) for value in GRID]
        risks = [
            float(risk(u, jnp.asarray(value))) / noisy.size
            for u, value in zip(images, GRID, strict=True)
        ]
        truth = [float(jnp.mean((u - clean) ** 2)) for u in images]
        bar.advance()
        estimator = ImplicitDifferentiation(SOLVER, LINEAR, error_estimate=False)
        loop = Alternating(estimator, optax.adam(0.2))
        tuned = run(
            judged,
            loop,
            noisy,
            jnp.asarray(START),
            noisy,
            noisy,
            steps=options.steps,
            every=options.steps,
        )
        bar.advance()
    denoised = solve(noisy, tuned.hparams, noisy)
    best = max(decibels(clean, u) for u in images)
    context.measure("oracle", best - decibels(clean, denoised))

    _, small = crop(options.seed, 16)
    at = jnp.asarray(GRID[len(GRID) // 2])
    fitted = lambda y: solve(small, at, y)  # noqa: E731
    exact = divergence(fitted, small)
    probed = divergence(fitted, small, options.probes, jax.random.key(options.seed))
    context.measure("divergence", abs(float(probed / exact) - 1))

    here = problem(options.probes, options.seed)
    step = 1e-4
    found, up, down = (
        hypergradient(here, small, at + shift, small, small, estimator=estimator)
        for shift in (0.0, step, -step)
    )
    difference = float(up.value - down.value) / (2 * step)
    context.measure("gradient", abs(float(found.grad) / difference - 1))

    context.table(
        "denoising",
        [
            {"penalty": "none", "log penalty": None, "PSNR": decibels(clean, noisy)},
            {
                "penalty": "by the risk estimate",
                "log penalty": float(tuned.hparams),
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
            "estimate, from the noisy crop": Curve(GRID.tolist(), risks),
            "truth, from the clean one": Curve(GRID.tolist(), truth),
        },
        x="log penalty",
        y="squared error of a pixel",
    )


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
