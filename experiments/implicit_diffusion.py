"""Implicit diffusion: a sampler is tuned while it samples, by one covariance a step.

A mixture of six Gaussians is tilted towards a reward by its weights: the particles follow Langevin
dynamics, and after every step of theirs the weights take one step along the covariance of the
reward with the potential's derivative. Rewards that jump are no obstacle, since no derivative of
the sampler or of the reward is taken. Expectations are judged by quadrature, not by the particles.
Then a prior precision of Bayesian logistic regression is tuned for the predictive density of
validation data, and compared with the precision that the Laplace evidence prefers, on several
splits of the data: what one set of a hundred validation examples prefers is mostly its own.

Marion, Korba, Bartlett, Blondel, De Bortoli, Doucet, Llinares-López, Paquette and Berthet,
"Implicit Diffusion: Efficient Optimization through Stochastic Sampling" (AISTATS 2025). Geometry,
rewards and constants of the first part are those of the authors' code.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer

from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import hypergradient
from hypergrad.outer import Alternating, run
from hypergrad.sampling import ImplicitDiffusion, Langevin, SamplingProblem

ANGLES = jnp.arange(6) * jnp.pi / 3
CENTRES = 4.0 * jnp.stack([jnp.cos(ANGLES), jnp.sin(ANGLES)], axis=1)
TARGET = jnp.array([4.0, 3.8])
START = jnp.array([1.5, 0.0, 1.5, 0.0, 1.5, 0.0])
#: Langevin's step and the outer step of the authors.
GAMMA, ETA = 0.2, 0.1
SGD, ADAM = optax.sgd(ETA), optax.adam(0.02)
#: Langevin's step of the posterior of weights, in units of Laplace's covariance.
RATE = 0.05


def potential(x: jax.Array, theta: jax.Array, batch: None) -> jax.Array:
    """`−log` of a mixture of six Gaussians of variance 1 with weights `softmax(theta)`."""
    away = jnp.sum((x - CENTRES) ** 2, axis=1) / 2.0
    return -jax.nn.logsumexp(jax.nn.log_softmax(theta) - away)


def smooth(x: jax.Array) -> jax.Array:
    """A reward that rises towards the upper right."""
    return jax.nn.sigmoid(2 * x[0]) * jnp.exp(-jnp.sum((x - TARGET) ** 2) / 20) / 0.7


def hard(x: jax.Array) -> jax.Array:
    """A reward that is zero in the left half: it has a jump."""
    return (x[0] >= 0) * jnp.exp(-jnp.sum((x - TARGET) ** 2) / 20) / 2.5


REWARDS = {"smooth": smooth, "hard": hard}


@functools.partial(jax.jit, static_argnames=("reward", "cells"))
def expectations(reward: str, cells: int = 400) -> jax.Array:
    """`E[R]` under each component by the midpoint rule, the truth that all is measured by.

    Components have unit variance and equal mass: the mixture's expectation is their weighted sum.
    """
    edge = 12.0
    line = (jnp.arange(cells) + 0.5) / cells * 2 * edge - edge
    grid = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    values = jax.vmap(REWARDS[reward])(grid)
    densities = jnp.exp(-jnp.sum((grid[:, None] - CENTRES) ** 2, axis=2) / 2) / (2 * jnp.pi)
    return values @ densities * (2 * edge / cells) ** 2


def expected(theta: jax.Array, components: jax.Array) -> jax.Array:
    """`E[R]` of the mixture."""
    return jax.nn.softmax(theta) @ components


def sample(key: jax.Array, theta: jax.Array, count: int) -> jax.Array:
    """Exact draws from the mixture."""
    which, noise = jax.random.split(key)
    modes = jax.random.categorical(which, theta, shape=(count,))
    return CENTRES[modes] + jax.random.normal(noise, (count, 2))


def tilt(reward: str) -> SamplingProblem:
    """Maximise the expected reward."""
    return SamplingProblem(potential, lambda x, theta, batch: -REWARDS[reward](x))


TILTS = {reward: tilt(reward) for reward in REWARDS}


def tilted(reward: str, inner: int, outer: int, seed: int, particles: int) -> Curve:
    """`E[R]` by quadrature against Langevin steps: `inner` of them for each of `outer` steps."""
    seen: list[tuple[int, jax.Array]] = [(0, START)]
    run(
        TILTS[reward],
        Alternating(ImplicitDiffusion(Langevin(GAMMA), steps=inner), SGD),
        sample(jax.random.key(seed), START, particles),
        START,
        None,
        None,
        steps=outer,
        every=max(1, outer // 50),
        seed=seed,
        callbacks=[lambda at: seen.append((at.step * inner, jnp.asarray(at.state.visited)))],
    )
    components = expectations(reward)
    return Curve([at for at, _ in seen], [float(expected(theta, components)) for _, theta in seen])


def through_the_sampler(key: jax.Array, particles: int, steps: int = 50) -> float:
    """Largest derivative of `E 1[x₀ ≥ 0]` through the sampler itself: a jump has none."""
    dynamics = Langevin(GAMMA)

    @jax.jit
    @jax.grad
    def slope(theta: jax.Array) -> jax.Array:
        def move(cloud: jax.Array, each: jax.Array) -> tuple[jax.Array, None]:
            return dynamics.move(TILTS["hard"], cloud, theta, None, each)[0], None

        cloud, _ = jax.lax.scan(move, sample(key, START, particles), jax.random.split(key, steps))
        return jnp.mean(jnp.where(cloud[:, 0] >= 0, 1.0, 0.0))

    return float(jnp.max(jnp.abs(slope(START))))


# Bayesian logistic regression


def precision_problem() -> SamplingProblem:
    """Posterior of the weights, given the log prior precision; predictive density of other data."""

    def posterior(w: jax.Array, log_precision: jax.Array, batch: tuple) -> jax.Array:
        x, y = batch
        likelihood = jnp.sum(jax.nn.softplus(-(2 * y - 1) * (x @ w)))
        # The normaliser of the prior depends on the precision, not on the weights: it cancels.
        return likelihood + 0.5 * jnp.exp(log_precision) * jnp.sum(w**2)

    def predictive(w: jax.Array, batch: tuple) -> jax.Array:
        x, y = batch
        return jax.nn.sigmoid((2 * y - 1) * (x @ w))

    return SamplingProblem(
        posterior,
        lambda means, log_precision, batch: -jnp.mean(jnp.log(means)),
        predictive,
    )


PRECISION = precision_problem()


@jax.jit
def laplace(train: tuple, log_precision: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Laplace approximation: mode, Cholesky factor of the covariance, log evidence."""
    w = jnp.zeros(train[0].shape[1])
    energy = lambda w: PRECISION.potential(w, log_precision, train)  # noqa: E731
    step = lambda _, w: w - jnp.linalg.solve(jax.hessian(energy)(w), jax.grad(energy)(w))  # noqa: E731
    w = jax.lax.fori_loop(0, 30, step, w)
    hessian = jax.hessian(energy)(w)
    factor = jnp.linalg.cholesky(jnp.linalg.inv(hessian))
    _, log_det = jnp.linalg.slogdet(hessian)
    evidence = -energy(w) + 0.5 * len(w) * log_precision - 0.5 * log_det
    return w, factor, evidence


def breast_cancer(seed: int) -> tuple[tuple, tuple, tuple]:
    """Standardised features and a constant; 60 % to train, 20 % to tune, 20 % to test."""
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    a, b = int(0.6 * len(x)), int(0.8 * len(x))
    parts = [order[:a], order[a:b], order[b:]]
    x = (x - x[parts[0]].mean(0)) / x[parts[0]].std(0)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return tuple((jnp.asarray(x[p]), jnp.asarray(1.0 * y[p])) for p in parts)  # type: ignore[return-value]


@functools.partial(jax.jit, static_argnames=("particles", "steps"))
def posterior(
    log_precision: jax.Array, train: tuple, key: jax.Array, particles: int, steps: int
) -> jax.Array:
    """Weights, after many steps of Langevin from Laplace's approximation."""
    mode, factor, _ = laplace(train, log_precision)
    draw, move = jax.random.split(key)
    cloud = mode + jax.random.normal(draw, (particles, len(mode))) @ factor.T
    estimator = ImplicitDiffusion(Langevin(RATE, factor), steps=steps)
    state = estimator.init(PRECISION, cloud, log_precision, train)
    state, _ = estimator.fit(PRECISION, state, log_precision, train, key=move)
    return state.params


def mean_losses(log_precision: float, parts: tuple, key: jax.Array, particles: int) -> list[float]:
    """Mean `−log` predictive density of validation and of test data."""
    train, *others = parts
    cloud = np.asarray(posterior(jnp.asarray(log_precision), train, key, particles, 100))
    losses = []
    for x, y in others:
        probability = 1 / (1 + np.exp(-(2 * np.asarray(y) - 1) * (cloud @ np.asarray(x).T)))
        losses.append(float(-np.mean(np.log(np.mean(probability, axis=0)))))
    return losses


def tuned_precision(key: jax.Array, parts: tuple, particles: int, steps: int) -> float:
    """The log precision at the end of a single loop that watches the validation data."""
    train, validation, _ = parts
    mode, factor, _ = laplace(train, jnp.zeros(()))
    found = run(
        PRECISION,
        Alternating(ImplicitDiffusion(Langevin(RATE, factor)), ADAM),
        mode + jax.random.normal(key, (particles, len(mode))) @ factor.T,
        jnp.zeros(()),
        train,
        validation,
        steps=steps,
        every=steps,
    )
    return float(found.hparams)


def by_evidence(parts: tuple) -> float:
    """The log precision of the highest Laplace evidence, on a grid."""
    grid = np.linspace(-4.0, 4.0, 33)
    return float(grid[np.argmax([laplace(parts[0], jnp.asarray(value))[2] for value in grid])])


@experiment(
    paper="Marion et al. 2025, arXiv:2402.05468",
    x64=True,
    options=[
        Option("steps", 5000, quick=1000, help="steps of the single loop"),
        Option("particles", 1000, quick=400, help="particles"),
        Option("sample", 100_000, quick=20_000, help="exact draws for the check of the gradient"),
        Option("precision_steps", 600, quick=200, help="single-loop steps on the prior precision"),
        Option("weights", 400, quick=100, help="particles of the posterior of weights"),
        Option("splits", 6, quick=2, help="splits of breast cancer"),
    ],
    claims=[
        Claim(
            "gradient",
            "covariance formula against quadrature, relative error",
            at_most=0.02,
            quick=0.05,
        ),
        Claim(
            "smooth",
            "smooth reward: share of the best single component",
            at_least=0.98,
            quick=0.5,
        ),
        Claim(
            "hard",
            "reward with a jump: share of the best single component",
            at_least=0.98,
            quick=0.5,
        ),
        Claim(
            "nested",
            "lead over the nested loop after 500 Langevin steps, share of the range",
            at_least=0.1,
        ),
        Claim("through", "derivative of an indicator through the sampler", at_most=0.0),
        Claim(
            "predictive",
            "mean test loss at the tuned precision over that at the evidence's",
            at_most=1.01,
            quick=1.1,
        ),
        Claim(
            "validation",
            "the same of the data that it is tuned for",
            at_most=1.0,
            quick=1.01,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Tilt a mixture towards two rewards, then tune a prior precision."""
    options = context.options
    key = jax.random.key(options.seed)
    components = {reward: expectations(reward) for reward in REWARDS}

    truth = jax.grad(expected)(START, components["smooth"])
    cloud = sample(key, START, options.sample)
    found = hypergradient(
        TILTS["smooth"],
        cloud,
        START,
        None,
        None,
        estimator=ImplicitDiffusion(Langevin(1e-12)),
        key=key,
    )
    error = float(jnp.linalg.norm(-found.grad - truth) / jnp.linalg.norm(truth))
    context.measure("gradient", error)

    rows, curves = [], {}
    with context.progress("runs", total=3 + options.splits) as bar:
        for reward in REWARDS:
            curve = tilted(reward, 1, options.steps, options.seed, options.particles)
            best = float(jnp.max(components[reward]))
            curves[f"single loop, {reward}"] = curve
            context.measure(reward, curve.y[-1] / best)
            rows.append(
                {
                    "reward": reward,
                    "start": curve.y[0],
                    "single loop": curve.y[-1],
                    "best component": best,
                }
            )
            bar.advance(incumbent=curve.y[-1])
        nested = tilted("smooth", 100, 5, options.seed, options.particles)
        curves["nested loop, smooth"] = nested
        single = curves["single loop, smooth"]
        early = float(np.interp(500, single.x, single.y))
        span = float(jnp.max(components["smooth"])) - single.y[0]
        context.measure("nested", (early - nested.y[-1]) / span)
        bar.advance()

        context.measure("through", through_the_sampler(key, 200))
        splits = []
        for number in range(options.splits):
            parts = breast_cancer(options.seed + number)
            chosen = {
                "implicit diffusion": tuned_precision(
                    key, parts, options.weights, options.precision_steps
                ),
                "Laplace evidence": by_evidence(parts),
            }
            splits.append(
                {
                    name: (value, *mean_losses(value, parts, key, options.weights))
                    for name, value in chosen.items()
                }
            )
            bar.advance()

    def mean(name: str, field: int) -> float:
        return float(np.mean([split[name][field] for split in splits]))

    rows_of_precision = [
        {
            "chosen by": name,
            "log precision, mean": mean(name, 0),
            "least": min(split[name][0] for split in splits),
            "largest": max(split[name][0] for split in splits),
            "validation loss": mean(name, 1),
            "test loss": mean(name, 2),
        }
        for name in splits[0]
    ]
    tuned, evidence = rows_of_precision
    context.measure("predictive", tuned["test loss"] / evidence["test loss"])
    context.measure("validation", tuned["validation loss"] / evidence["validation loss"])
    ratios = [split["implicit diffusion"][2] / split["Laplace evidence"][2] for split in splits]
    context.say(
        "Test loss at the tuned precision over that at the evidence's, split by split: "
        + ", ".join(f"{ratio:.3f}" for ratio in ratios)
        + "."
    )
    context.table("expected reward, by quadrature", rows)
    context.table(
        "prior precision of Bayesian logistic regression, breast cancer", rows_of_precision
    )
    context.plot("reward", curves, x="Langevin steps", y="expected reward")


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
