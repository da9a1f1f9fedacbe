"""The weight decay of AdamW as a timescale: the best one grows with the batch.

AdamW averages its updates over the last 1/(rate · decay) steps. In shares of a pass over D examples
with batches of B that is `τ = B / (rate · decay · D)`. If τ is what has an optimum, then for one
model, rate and amount of data the best decay is proportional to the batch. Small networks see
pictures of clothes once; what counts is the loss on pictures that were not seen. Their hidden
layers are normalised, as those of a language model, and they alone decay: there it decides how far
a step turns the weights. (With decay of all matrices, larger rates and noisy labels the lowest
decays were best at every batch, with and without normalisation.) The best decay at each batch is
the lowest point of a parabola through the best of a grid of octaves and its neighbours; one at the
end of the grid is no measurement.

Bergsma et al., "Power Lines: Scaling Laws for Weight Decay and Batch Size in LLM Pre-training"
(2025).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import fashion_mnist
from experiments.data.workloads import classified, layers
from experiments.harness import Claim, Context, Curve, Option, experiment
from strategies.laws import PowerLaw

DECAYS = 2.0 ** np.arange(0.0, 12.0)
RATE, WIDTH, INPUTS, CLASSES = 5e-4, 64, 196, 10
#: Pictures to draw from, and those that are held out.
MOST, HELD = 16384, 4000


def pictures() -> tuple[jax.Array, ...]:
    """Training pictures and their labels; held-out ones and theirs."""
    train, test = fashion_mnist()
    small = [
        part.x.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, INPUTS).astype(np.float32)
        for part in (train, test)
    ]
    mean, spread = small[0].mean(), small[0].std()
    x, held = ((part - mean) / spread for part in small)
    return (
        jnp.asarray(x[:MOST]),
        jnp.asarray(train.y[:MOST], jnp.int32),
        jnp.asarray(held[:HELD]),
        jnp.asarray(test.y[:HELD], jnp.int32),
    )


def losses(data: tuple, examples: int, batch: int, seeds: int) -> np.ndarray:
    """Held-out loss for each decay after one pass, shape `(seeds, decays)`; one program."""
    x, y, held, labels = data
    steps = examples // batch
    draw = layers([INPUTS, WIDTH, WIDTH, CLASSES])

    def run(key: jax.Array, order: jax.Array, decay: jax.Array) -> jax.Array:
        schedule = optax.linear_schedule(RATE, 0.0, steps)
        optimizer = optax.adamw(
            schedule,
            b2=0.99,
            weight_decay=decay,
            # Of what is normalised: there the decay does nothing but set how far a step turns.
            mask=lambda params: [(last > 0, False) for last in range(len(params))][::-1],
        )
        params = draw(key)

        def step(carry: tuple, rows: jax.Array) -> tuple:
            params, state = carry
            gradient = jax.grad(lambda p: classified(logits_of(p, x[rows]), y[rows]))(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), order)
        return classified(logits_of(params, held), labels)

    over = jax.jit(jax.vmap(jax.vmap(run, (None, None, 0)), (0, 0, None)))
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(y))[: steps * batch].reshape(steps, batch) for _ in range(seeds)]
    keys = jax.random.split(jax.random.key(0), seeds)
    found = over(keys, jnp.asarray(np.array(orders)), jnp.asarray(DECAYS, jnp.float32))
    return np.nan_to_num(np.asarray(found), nan=np.inf)


def logits_of(params: list, x: jax.Array) -> jax.Array:
    """Rectified layers, each normalised before."""
    for w, b in params[:-1]:
        h = x @ w
        h = h - h.mean(-1, keepdims=True)
        x = jax.nn.relu(h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-12) + b)
    return x @ params[-1][0] + params[-1][1]


def lowest(values: np.ndarray) -> tuple[float, bool]:
    """The decay at the lowest point of a parabola in its logarithm, and whether it is inside."""
    at = int(values.argmin())
    if not 0 < at < len(values) - 1 or not np.isfinite(values[at - 1 : at + 2]).all():
        return float(DECAYS[at]), False
    before, here, after = values[at - 1 : at + 2]
    shift = 0.5 * (before - after) / (before - 2 * here + after)
    return float(DECAYS[at] * 2.0**shift), True


@experiment(
    paper="Bergsma et al. 2025, arXiv:2505.13738",
    options=[
        Option("examples", 8192, quick=2048, help="pictures, each seen once"),
        Option("batches", 4, quick=3, help="sizes: 16, twice that, ..."),
        Option("seeds", 4, quick=2, help="draws"),
    ],
    claims=[
        Claim(
            "slope",
            "power of the batch in the best decay, distance from 1",
            at_most=0.25,
            quick=0.7,
        ),
        Claim(
            "data", "best timescale with the data / with a quarter of them", at_most=1.0, quick=1.5
        ),
        Claim("bracketed", "best decays inside the grid, share", at_least=1.0),
    ],
)
def run_experiment(context: Context) -> None:
    """The best decay at each batch, and at less data."""
    options = context.options
    data = pictures()
    sizes = [16 * 2**i for i in range(options.batches)]
    runs = [(options.examples, batch) for batch in sizes] + [(options.examples // 4, sizes[1])]
    rows, curves, inside = [], {}, []
    with context.progress("trainings at all decays", total=len(runs)) as bar:
        for examples, batch in runs:
            found = losses(data, examples, batch, options.seeds)
            decay, bracketed = lowest(found.mean(0))
            inside.append(bracketed)
            rows.append(
                {
                    "examples": examples,
                    "batch": batch,
                    "best decay": decay,
                    "timescale": batch / (RATE * decay * examples),
                    "held-out loss": float(found.mean(0).min()),
                }
            )
            finite = np.where(np.isfinite(found.mean(0)), found.mean(0), np.nan)
            curves[f"{examples} examples, batch {batch}"] = Curve(DECAYS, finite)
            bar.advance()
    law = PowerLaw.fit(rows[:-1], ("batch",), "best decay", bootstrap=200)
    low, high = law.intervals["batch"]
    context.say(f"Power of the batch: {law.exponents[0]:.2f}, 95 % {low:.2f} to {high:.2f}.")
    context.measure("slope", abs(law.exponents[0] - 1.0))
    context.measure("data", rows[1]["timescale"] / rows[-1]["timescale"])
    context.measure("bracketed", float(np.mean(inside)))
    context.table("best decays", rows)
    context.plot("decays", curves, x="weight decay", y="held-out loss", x_scale="log")


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
