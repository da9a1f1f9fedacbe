"""The best learning rate of a narrow network used for a wide or a deep one, with and without muP.

Networks with three hidden layers learn pictures of clothes at several widths, and residual ones at
several depths, each at learning rates an octave apart; all rates of a network are one compiled
program. In the usual initialisation the best rate of Adam falls as the network gets wider. Under
muP, whose rules are inferred from the shapes, it stays, and the rate of the narrowest network can
be used. CompleteP does the same for depth. Readouts of the plain networks begin at zero, the rates
fall linearly to zero over the training, and the loss is that of training examples.

What is counted as the cost are the operations of a step by XLA's own analysis.

Yang et al., "Tensor Programs V" (2022); Dey et al., "CompleteP" (2025).
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import fashion_mnist
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad.transfer import Parametrization, infer
from hypergrad.transfer.rules import Kind, Optimizer

#: Learning rates, powers of two. A best one at either end has not been bracketed.
OCTAVES = {
    "adam": np.arange(-11.0, -2.0),
    "sgd": np.arange(-7.0, 3.0),
    "depth": np.arange(-12.0, -4.0),
}
NARROWEST, SHALLOWEST = 64, 2
LAYERS = 2
INPUTS, CLASSES = 196, 10
EXAMPLES, BATCH = 4096, 64


@dataclass(frozen=True)
class Network:
    """What is trained: plain layers, or residual blocks."""

    kind: Kind
    optimizer: Optimizer = "adam"
    width: int = NARROWEST
    depth: int = LAYERS
    residual: bool = False

    def draw(self, key: jax.Array, width: int | None = None) -> dict:
        """Values of size 1/√fan-in, biases zero, and the readout of plain layers."""
        w = width or self.width
        first, middle, last = jax.random.split(key, 3)
        return {
            "first": jax.random.normal(first, (INPUTS, w)) / jnp.sqrt(INPUTS),
            "blocks": {
                "w": jax.random.normal(middle, (self.depth, w, w)) / jnp.sqrt(w),
                "b": jnp.zeros((self.depth, w)),
            },
            # Zero: then none is larger by chance than the rule says. Of a width that is the same
            # everywhere it need not be.
            "last": self.residual * jax.random.normal(last, (w, CLASSES)) / jnp.sqrt(w),
        }

    @property
    def rule(self) -> Parametrization:
        """From the shapes at two widths, and the depth."""
        shape = lambda width: jax.eval_shape(  # noqa: E731
            partial(self.draw, width=width), jax.random.key(0)
        )
        deep = {"depth": (SHALLOWEST, self.depth), "blocks": "blocks"}
        found = infer(
            shape(NARROWEST),
            shape(2 * NARROWEST),
            kind=self.kind,
            optimizer=self.optimizer,
            **(deep if self.kind == "completep" else {}),
        )
        return found.at(shape(self.width))

    def loss(self, params: dict, branch: float, x: jax.Array, y: jax.Array) -> jax.Array:
        """Cross-entropy of the labels."""

        def block(h: jax.Array, layer: dict) -> tuple[jax.Array, None]:
            seen = normalised(h) if self.residual else h
            new = jax.nn.relu(seen) @ layer["w"] + layer["b"]
            return (h + branch * new if self.residual else new), None

        h = jax.lax.scan(block, x @ params["first"], params["blocks"])[0]
        logits = (normalised(h) if self.residual else jax.nn.relu(h)) @ params["last"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def normalised(h: jax.Array) -> jax.Array:
    """Of mean zero and size one."""
    h = h - h.mean(-1, keepdims=True)
    return h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6)


@dataclass(frozen=True)
class Swept:
    """Losses at each rate, shape `(seeds, rates)`, and operations of one training."""

    losses: np.ndarray
    flops: float

    @property
    def mean(self) -> np.ndarray:
        """Over seeds."""
        return self.losses.mean(0)

    def best(self, octaves: np.ndarray) -> float:
        """The rate with the smallest mean loss, log2."""
        return float(octaves[self.mean.argmin()])

    def inside(self) -> bool:
        """Whether the best rate has a worse one on either side."""
        return 0 < self.mean.argmin() < self.losses.shape[1] - 1


def sweep(
    net: Network, octaves: np.ndarray, steps: int, seeds: int, seed: int, data: tuple
) -> Swept:
    """Train at every rate, all rates in one program."""
    rule, (x, y) = net.rule, data

    def loss(params: dict, rows: jax.Array | slice) -> jax.Array:
        return net.loss(rule.forward(params), rule.branch, x[rows], y[rows])

    def run(octave: jax.Array, params: dict, key: jax.Array) -> jax.Array:
        schedule = optax.linear_schedule(2.0**octave, 0.0, steps)
        plain = optax.adam(schedule) if net.optimizer == "adam" else optax.sgd(schedule)
        optimizer = rule.optimizer(plain)

        def step(carry: tuple, key: jax.Array) -> tuple:
            params, state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(y))
            updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
        return loss(params, slice(0, EXAMPLES // 2))

    over = jax.jit(jax.vmap(run, (0, None, None)))
    found = []
    for each in range(seeds):
        key = jax.random.fold_in(jax.random.key(seed), each)
        params = rule.init(net.draw(key), net.draw(key, NARROWEST))
        found.append(over(jnp.asarray(octaves, jnp.float32), params, key))
    gradient = jax.jit(jax.grad(loss)).lower(params, jnp.zeros(BATCH, jnp.int32))
    # Of a loop XLA counts one pass: the blocks beyond the first are added.
    flops = gradient.cost_analysis()["flops"] + 6.0 * BATCH * net.width**2 * (net.depth - 1)
    # A training that has blown up is worse than any other.
    return Swept(np.nan_to_num(np.asarray(found), nan=np.inf), steps * flops)


def pictures() -> tuple[jax.Array, jax.Array]:
    """14 x 14 pixels of mean zero and size one."""
    train, _ = fashion_mnist()
    x = train.x[:EXAMPLES].reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, INPUTS)
    return (
        jnp.asarray((x - x.mean()) / x.std(), jnp.float32),
        jnp.asarray(train.y[:EXAMPLES], jnp.int32),
    )


def carried(octaves: np.ndarray, there: Swept, rate: float) -> float:
    """The loss at a rate found elsewhere, relative to the best."""
    return float(there.mean[list(octaves).index(rate)] / there.mean.min())


@experiment(
    paper="Yang et al. 2022, arXiv:2203.03466; Dey et al. 2025, arXiv:2505.01618",
    options=[
        Option("steps", 120, quick=50, help="steps of a training"),
        Option("largest", 1024, quick=256, help="width of the widest network"),
        Option("deepest", 64, quick=32, help="blocks of the deepest network"),
        Option("between", True, quick=False, help="sizes between the ends as well"),
        Option("seeds", 3, quick=1, help="draws and orders of the data"),
        Option("sgd", True, help="plain gradient steps as well, at both ends"),
    ],
    claims=[
        Claim("mup", "octaves that Adam's best rate moves with width, muP", at_most=1),
        Claim("standard", "octaves that it moves without", at_least=2, quick=1),
        Claim(
            "carried", "loss of the widest at the narrowest's rate / re-tuned, muP", at_most=1.05
        ),
        Claim("lost", "the same without muP", at_least=1.05),
        Claim("wider", "rise of the loss with width, muP, standard errors", at_most=1.0, quick=3.0),
        Claim("completep", "octaves that the best rate moves with depth, CompleteP", at_most=1),
        Claim("deep", "octaves that it moves without", at_least=2, quick=1),
        Claim("cost", "operations to tune the narrowest / the widest", at_most=0.05, quick=0.25),
        Claim("bracketed", "best rates inside the grid, share", at_least=1.0),
        Claim("sgd", "octaves of SGD's best rate, muP", at_most=1, when=lambda o: o.sgd),
    ],
)
def run_experiment(context: Context) -> None:
    """Every width, every depth, every rate."""
    options = context.options
    widths = [NARROWEST * 2**i for i in range((options.largest // NARROWEST).bit_length())]
    depths = [SHALLOWEST * 4**i for i in range(10) if SHALLOWEST * 4**i <= options.deepest]
    depths = sorted({*depths, options.deepest})
    if not options.between:
        widths, depths = [widths[0], widths[-1]], [depths[0], depths[-1]]
    groups: dict[str, tuple[tuple[Kind, Kind], list[Network]]] = {
        "adam": (("standard", "mup"), [Network("mup", width=width) for width in widths]),
        "depth": (
            ("standard", "completep"),
            [Network("completep", depth=depth, residual=True) for depth in depths],
        ),
    }
    if options.sgd:
        ends = [Network("mup", "sgd", width) for width in (widths[0], widths[-1])]
        groups["sgd"] = (("standard", "mup"), ends)
    data = pictures()
    swept: dict[tuple[str, str], list[Swept]] = {}
    rows = []
    # At the base size both rules are the same training, bit for bit: it is run once.
    total = sum(2 * len(nets) - 1 for _, nets in groups.values())
    with context.progress("networks, at all rates", total=total) as bar:
        for group, (kinds, nets) in groups.items():
            octaves = OCTAVES[group]
            for kind in kinds:
                begun = swept.get((group, kinds[0]), [])[:1]
                found = swept[group, kind] = list(begun)
                for net in nets[len(begun) :]:
                    net = replace(net, kind=kind)
                    found.append(
                        sweep(net, octaves, options.steps, options.seeds, options.seed, data)
                    )
                    bar.advance()
                for net, there in zip(nets, found, strict=True):
                    rows.append(
                        {
                            "rule": kind,
                            "optimizer": net.optimizer,
                            "blocks": net.depth,
                            "width": net.width,
                            "best rate, log2": there.best(octaves),
                            "loss there": float(there.mean.min()),
                            "at the rate of the smallest / best": carried(
                                octaves, there, found[0].best(octaves)
                            ),
                        }
                    )

    def moved(group: str, kind: str) -> float:
        ends = [swept[group, kind][at].best(OCTAVES[group]) for at in (0, -1)]
        return abs(ends[1] - ends[0])

    context.measure("mup", moved("adam", "mup"))
    context.measure("standard", moved("adam", "standard"))
    context.measure("completep", moved("depth", "completep"))
    context.measure("deep", moved("depth", "standard"))
    if options.sgd:
        context.measure("sgd", moved("sgd", "mup"))
    octaves, narrow = OCTAVES["adam"], swept["adam", "mup"][0]
    rate = narrow.best(octaves)
    for claim, kind in (("carried", "mup"), ("lost", "standard")):
        context.measure(claim, carried(octaves, swept["adam", kind][-1], rate))
    at = list(octaves).index(rate)
    context.measure("wider", steepest([s.losses[:, at] for s in swept["adam", "mup"]]))
    context.measure("cost", narrow.flops / swept["adam", "mup"][-1].flops)
    inside = [each.inside() for found in swept.values() for each in found]
    context.measure("bracketed", float(np.mean(inside)))
    context.table("best rates", rows)
    for group, (kinds, nets) in groups.items():
        context.plot(
            group,
            {
                f"{kind}, {net.depth if group == 'depth' else net.width}": Curve(
                    OCTAVES[group], np.where(np.isfinite(there.mean), there.mean, np.nan)
                )
                for kind in kinds
                for net, there in zip(nets, swept[group, kind], strict=True)
            },
            x="log2 learning rate",
            y="training loss",
            y_scale="log",
        )


def steepest(losses: list[np.ndarray]) -> float:
    """The largest rise from one width to the next, in standard errors of the mean difference."""
    rises = []
    for narrow, wide in pairwise(losses):
        difference = wide - narrow
        # One seed has no spread of its own: that of a hundredth of the loss stands in.
        spread = difference.std(ddof=1) if len(difference) > 1 else 0.01 * narrow.mean()
        rises.append(difference.mean() / (spread / np.sqrt(len(difference))))
    return float(max(rises))


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
