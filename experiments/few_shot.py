"""Few-shot learning on Omniglot: a representation shared by all tasks, as the outer variable.

A task is to tell five handwritten characters apart from one drawing of each. The inner variable is
the task's linear classifier, trained from zero by two gradient steps; the outer variable is the
network below it, shared by all tasks, tuned by the hypergradient of the loss on other drawings of
the same characters through those two steps. Training and test characters come from different
alphabets.

MAML, prototypical and matching networks have the same encoder, optimizer and sequence of episodes,
and as many episodes as take the same number of operations. Each learns, with the encoder, one
number of its own, the length of its inner steps or a temperature, from a value chosen on another
split of the alphabets. Beside them: the encoder left random, raw pixels, and the whole network
trained from scratch on the five drawings.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from experiments.data import omniglot
from experiments.few_shot_parts import (
    encoder,
    hyper_representation,
    maml,
    matching,
    prototypical,
)
from experiments.few_shot_parts.episodes import Episodes, Places, accuracy, loss
from experiments.few_shot_parts.method import Method, train
from experiments.harness import Claim, Context, Curve, Option, experiment

OURS = "hyper-representation"
METHODS: dict[str, Method] = {
    OURS: hyper_representation.METHOD,
    "MAML": maml.METHOD,
    "prototypical networks": prototypical.METHOD,
    "matching networks": matching.METHOD,
}
SCRATCH, RANDOM, PIXELS = "whole network from scratch", "random representation", "raw pixels"
TEST_ALPHABETS = 3
PIECES = 10


@jax.jit
def of_pixels(episodes: Episodes) -> Array:
    """Accuracy of linear classifiers on raw pixels, trained by the same two steps."""
    start = hyper_representation.zeros(episodes, episodes.known.shape[-1])
    head = hyper_representation.trained(episodes.known, start, hyper_representation.STEP)
    return accuracy(hyper_representation.classify(head, episodes.asked))


@jax.jit
def from_scratch(network: dict, episodes: Episodes) -> Array:
    """Accuracy of each task with the whole network trained on its five drawings."""
    optimizer = optax.adam(3e-3)

    def task(each: Episodes) -> Array:
        each = jax.tree.map(lambda a: a[None], each)
        networks = maml.for_each(each, network)

        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            networks, state = carry
            slope = jax.grad(lambda n: loss(maml.classify(n, each.known)))(networks)
            update, state = optimizer.update(slope, state)
            return (optax.apply_updates(networks, update), state), None

        start = (networks, optimizer.init(networks))
        (networks, _), _ = jax.lax.scan(step, start, None, length=50)
        return accuracy(maml.classify(networks, each.asked))[0]

    return jax.lax.map(task, episodes)


@experiment(
    paper="Franceschi, Frasconi, Salzo, Grazzi and Pontil 2018, arXiv:1806.04910, section 5",
    compiles=True,
    options=[
        Option("steps", 2000, quick=100, help="outer steps of the hyper-representation"),
        Option("tasks", 8, help="tasks per outer step"),
        Option("test_tasks", 600, quick=100, help="test tasks"),
        Option("splits", 3, quick=1, help="splits of the alphabets"),
    ],
    claims=[
        Claim(
            "over_scratch",
            "points of accuracy above training from scratch on the five drawings",
            at_least=10.0,
            quick=5.0,
        ),
        Claim("over_random", "points of accuracy above a random representation", at_least=5.0),
        Claim(
            "rivals",
            "points of accuracy below the best of MAML, prototypical and matching networks",
            at_most=2.0,
            quick=5.0,
        ),
    ],
)
def run(context: Context) -> None:
    """Learn on some alphabets, test on others."""
    options = context.options
    alphabets = omniglot(encoder.SIDE)
    cost = {n: m.operations(options.tasks, encoder.SIDE**2) for n, m in METHODS.items()}
    steps = {
        name: int(options.steps * cost[OURS] / each / PIECES) * PIECES
        for name, each in cost.items()
    }
    found: dict[str, list[float]] = {}
    curves: dict[str, list[list[float]]] = {name: [] for name in METHODS}
    with context.progress("trainings", total=options.splits * len(METHODS) * PIECES) as bar:
        for seed in range(options.seed, options.seed + options.splits):
            learnt, held = halves(alphabets, seed)
            start = jax.random.key(seed)
            tests = Places.draw(
                np.random.default_rng([seed, 1]), held.shape[:2], options.test_tasks
            ).episodes(held)
            for name, method in METHODS.items():
                rng = np.random.default_rng([seed, 0])
                weights = method.initialise(start)
                path = list(
                    learning(method, weights, learnt, tests, steps[name], options.tasks, rng)
                )
                bar.advance(PIECES, incumbent=path[-1])
                curves[name].append(path[1:])
                found.setdefault(name, []).append(path[-1])
                if name == OURS:
                    found.setdefault(RANDOM, []).append(path[0])
            network = maml.initialise(start)["network"]
            found.setdefault(PIXELS, []).append(percent(of_pixels(tests)))
            found.setdefault(SCRATCH, []).append(percent(from_scratch(network, tests)))
    report(context, found, curves, cost, steps)


def halves(alphabets: dict[str, np.ndarray], seed: int) -> tuple[Array, Array]:
    """Characters of the alphabets to learn from, and of three others."""
    names = np.random.default_rng(seed).permutation(sorted(alphabets))

    def characters(wanted: np.ndarray) -> Array:
        pictures = np.concatenate([alphabets[name] for name in wanted])
        return jnp.asarray(pictures.reshape(*pictures.shape[:2], -1))

    return characters(names[TEST_ALPHABETS:]), characters(names[:TEST_ALPHABETS])


def learning(
    method: Method,
    weights: PyTree,
    learnt: Array,
    tests: Episodes,
    steps: int,
    tasks: int,
    rng: np.random.Generator,
) -> Iterator[float]:
    """Test accuracy in per cent, before and ten times during training on `learnt` characters."""
    evaluate = jax.jit(lambda weights: accuracy(method.scores(weights, tests)))
    yield percent(evaluate(weights))
    for trained in train(
        method, weights, learnt, pieces=PIECES, steps=steps // PIECES, tasks=tasks, rng=rng
    ):
        yield percent(evaluate(trained))


def percent(accuracies: Array) -> float:
    """The mean in per cent."""
    return 100 * float(jnp.mean(accuracies))


def report(
    context: Context,
    found: dict[str, list[float]],
    curves: dict[str, list[list[float]]],
    cost: dict[str, float],
    steps: dict[str, int],
) -> None:
    """Table, curves over operations, and the claims."""
    mean = {name: float(np.mean(each)) for name, each in found.items()}
    context.table(
        "5-way 1-shot accuracy on characters of other alphabets",
        [
            {
                "method": name,
                "accuracy %": mean[name],
                "from": min(each),
                "to": max(each),
                "outer steps": steps.get(name, 0),
                "million operations a step": cost.get(name, 0.0) / 1e6,
            }
            for name, each in sorted(found.items(), key=lambda pair: -mean[pair[0]])
        ],
    )
    total = steps[OURS] * cost[OURS] / 1e9
    x = total * np.arange(1, PIECES + 1) / PIECES
    flat = {name: Curve(x, np.full(PIECES, mean[name])) for name in (RANDOM, PIXELS, SCRATCH)}
    learning = {name: Curve(x, np.mean(paths, axis=0)) for name, paths in curves.items()}
    context.plot("accuracy", {**learning, **flat}, x="billion operations", y="test accuracy, %")
    ours = mean[OURS]
    context.measure("over_scratch", ours - mean[SCRATCH])
    context.measure("over_random", ours - mean[RANDOM])
    context.measure("rivals", max(mean[name] for name in METHODS if name != OURS) - ours)


if __name__ == "__main__":
    raise SystemExit(run.main())
