"""Few-shot learning on Omniglot: a representation shared by all tasks, as the outer variable.

A task is to tell five handwritten characters apart from one drawing of each. The inner variable is
the task's linear classifier, trained from zero by four gradient steps; the outer variable is the
network below it, shared by all tasks, tuned by the hypergradient of the loss on other drawings of
the same characters through those four steps. Training and test characters come from different
alphabets. Compared with the same network left random, with raw pixels, and with training the whole
network from scratch on the five drawings.

Franceschi, Frasconi, Salzo, Grazzi and Pontil, "Bilevel programming for hyperparameter optimization
and meta-learning" (2018), section 5.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from experiments.data import omniglot
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem
from hypergrad.outer import Alternating, Batches, Sampler, run
from hypergrad.unrolled import Unrolled

SIDE, WAYS, SHOTS, QUERIES = 14, 5, 1, 5
FEATURES = 64
STEP, STEPS = 0.4, 4
TEST_ALPHABETS = 3


class Episodes(Sampler):
    """Tasks drawn at random: five characters, a drawing of each to learn from, others to test.

    **Arguments:**

    - `tasks`: tasks per outer step.
    """

    tasks: int = eqx.field(static=True)

    def __call__(
        self, inner_data: PyTree, outer_data: PyTree, step: Int[Array, ""], key: Array
    ) -> Batches:
        """See `Sampler`; both data are characters, `(characters, drawings, pixels)`."""
        return Batches(*draw(inner_data, self.tasks, jax.random.fold_in(key, step)))

    def evaluation_data(self, outer_data: PyTree) -> PyTree | None:
        """`None`: the classifiers belong to the tasks of the step."""
        return None


def draw(characters: jax.Array, tasks: int, key: Array) -> tuple[jax.Array, jax.Array]:
    """Drawings to learn from `(tasks, 5, 1, pixels)`, and to test on `(tasks, 5, 5, pixels)`."""

    def one(key: Array) -> jax.Array:
        which, drawings = jax.random.split(key)
        # The places of the largest of so many random numbers: a draw without replacement.
        _, chosen = jax.lax.top_k(jax.random.uniform(which, (characters.shape[0],)), WAYS)
        luck = jax.random.uniform(drawings, (WAYS, characters.shape[1]))
        _, shots = jax.lax.top_k(luck, SHOTS + QUERIES)
        return characters[chosen[:, None], shots]

    pictures = jax.vmap(one)(jax.random.split(key, tasks))
    return pictures[:, :, :SHOTS], pictures[:, :, SHOTS:]


def representation(network: list, pictures: jax.Array) -> jax.Array:
    """Two hidden layers; features of norm one."""
    x = pictures
    for layer in network:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6) * 8


def initialise(key: Array) -> list:
    """Layers of 196-128-64."""
    sizes = (SIDE**2, 128, FEATURES)
    keys = jax.random.split(key, 2)
    return [
        {"w": jax.random.normal(k, (a, b)) / np.sqrt(a), "b": jnp.zeros(b)}
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def scores(head: jax.Array, features: jax.Array) -> jax.Array:
    """Scores of the five classes for each picture of each task."""
    return jnp.einsum("tfc,twsf->twsc", head, features)


def loss(head: jax.Array, features: jax.Array) -> jax.Array:
    """Cross-entropy, summed over tasks so that each is trained on its own; mean over pictures."""
    logs = jax.nn.log_softmax(scores(head, features))
    right = jnp.einsum("twsw->tws", logs)
    return -jnp.sum(jnp.mean(right, axis=(1, 2)))


PROBLEM = BilevelProblem(
    lambda head, network, pictures: loss(head, representation(network, pictures)),
    lambda head, network, pictures: (
        loss(head, representation(network, pictures)) / pictures.shape[0]
    ),
)


@jax.jit
def evaluate(network: list | None, pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Accuracy of each task, heads trained by the same four steps; `None` for raw pixels."""

    def features(pictures: jax.Array) -> jax.Array:
        return pictures if network is None else representation(network, pictures)

    known, asked = map(features, pair)
    head = jnp.zeros((known.shape[0], known.shape[-1], WAYS))
    for _ in range(STEPS):
        head = head - STEP * jax.grad(loss)(head, known)
    guesses = jnp.argmax(scores(head, asked), axis=-1)
    return jnp.mean(guesses == jnp.arange(WAYS)[None, :, None], axis=(1, 2))


@jax.jit
def from_scratch(network: list, pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Accuracy of each task with the whole network trained on its five drawings."""
    optimizer = optax.adam(3e-3)

    def task(known: jax.Array, asked: jax.Array) -> jax.Array:
        model = (network, jnp.zeros((1, FEATURES, WAYS)))

        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            model, state = carry
            slope = jax.grad(lambda m: loss(m[1], representation(m[0], known[None])))(model)
            update, state = optimizer.update(slope, state)
            return (optax.apply_updates(model, update), state), None

        (model, _), _ = jax.lax.scan(step, (model, optimizer.init(model)), None, length=50)
        guesses = jnp.argmax(scores(model[1], representation(model[0], asked[None])), axis=-1)
        return jnp.mean(guesses[0] == jnp.arange(WAYS)[:, None])

    return jax.lax.map(lambda p: task(*p), pair)


@experiment(
    paper="Franceschi, Frasconi, Salzo, Grazzi and Pontil 2018, arXiv:1806.04910",
    options=[
        Option("steps", 3000, quick=400, help="outer steps"),
        Option("tasks", 8, help="tasks per outer step"),
        Option("test_tasks", 600, quick=200, help="test tasks"),
    ],
    claims=[
        Claim(
            "over_scratch",
            "points of accuracy above training from scratch on the five drawings",
            at_least=10.0,
        ),
        Claim("over_random", "points of accuracy above a random representation", at_least=5.0),
    ],
)
def run_experiment(context: Context) -> None:
    """Learn the representation on some alphabets, test on others."""
    options = context.options
    alphabets = omniglot(SIDE)
    names = sorted(alphabets)
    order = np.random.default_rng(options.seed).permutation(len(names))
    held = [names[i] for i in order[:TEST_ALPHABETS]]

    def characters(wanted: list[str]) -> jax.Array:
        pictures = np.concatenate([alphabets[name] for name in wanted])
        return jnp.asarray(pictures.reshape(*pictures.shape[:2], -1))

    train = characters([name for name in names if name not in held])
    start, pick = jax.random.split(jax.random.key(options.seed))
    network = initialise(start)
    tests = draw(characters(held), options.test_tasks, pick)
    accuracies: list[float] = []
    every = max(options.steps // 20, 1)
    with context.progress("outer steps", total=options.steps) as bar:

        def watch(report) -> None:
            accuracies.append(100 * float(jnp.mean(evaluate(report.state.hparams, tests))))
            bar.advance(every, incumbent=max(accuracies))

        result = run(
            PROBLEM,
            Alternating(
                Unrolled(optax.sgd(STEP), STEPS),
                optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-3)),
            ),
            jnp.zeros((options.tasks, FEATURES, WAYS)),
            network,
            train,
            train,
            steps=every * 20,
            every=every,
            seed=options.seed,
            sampler=Episodes(options.tasks),
            callbacks=[watch],
        )
    found = {
        "learnt representation": evaluate(result.state.hparams, tests),
        "random representation": evaluate(network, tests),
        "raw pixels": evaluate(None, tests),
        "whole network from scratch": from_scratch(network, tests),
    }
    mean = {name: 100 * float(jnp.mean(each)) for name, each in found.items()}
    context.table(
        "5-way 1-shot accuracy on characters of other alphabets",
        [
            {
                "method": name,
                "accuracy %": mean[name],
                "standard error": 100 * float(jnp.std(each)) / np.sqrt(len(each)),
            }
            for name, each in found.items()
        ],
    )
    steps = every * np.arange(1, len(accuracies) + 1)
    flat = {
        name: Curve(steps, np.full(len(steps), value))
        for name, value in mean.items()
        if name != "learnt representation"
    }
    context.plot(
        "accuracy",
        {"learnt representation": Curve(steps, accuracies), **flat},
        x="outer steps",
        y="test accuracy, %",
    )
    learnt = mean["learnt representation"]
    context.measure("over_scratch", learnt - mean["whole network from scratch"])
    context.measure("over_random", learnt - mean["random representation"])


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
