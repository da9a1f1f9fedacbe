"""Hypernetworks of a linear classifier: one penalty for all weights, one a class, one for each.

A global hypernetwork is trained once over all log penalties of a softmax classifier. Its validation
curve is compared with that of trained classifiers, one for each point of a grid, and a descent
along it with the best point of the grid.

With one log penalty for each class, a global hypernetwork is trained over independent draws of the
ten. What it predicts at new draws is compared with classifiers that are trained from scratch at the
same penalties, and with a Gaussian process on 25 trainings. Bayesian search gets the same ten
penalties, which is as many as it can manage.

Then each weight and bias has a log penalty of its own (7,850 of them on images of 28 x 28 pixels),
and the hypernetworks have a bottleneck of ten units. A global one is trained over independent draws
of all penalties, a local one around penalties that follow its hypergradient. Ten directions cannot
follow thousands of independent draws, so that the global one is asked only for penalties, and what
it predicts at draws is a finding and no claim; the paper, too, has a local one here. Penalties that
were found are trained again from scratch. All start where the hypernetwork of one penalty ends. As
in the paper, the validation set is fitted the better the more penalties there are; the test set
shows what that is worth.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
from jaxtyping import Array, PyTree, Scalar
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from experiments.data import fashion_mnist, tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad.hypernetwork import Hypernetwork, Normal, Uniform
from hypergrad.problem import BilevelProblem
from hypergrad.self_tuning import Perturbation, Tuner

CLASSES = 10
LOWEST, HIGHEST = -10.0, -2.0
START = -4.0
# Standard deviation of the log penalties when each class has its own, and the trainings that a
# Gaussian process gets to learn the loss, both as in the paper.
CLASS_SPREAD, PROCESS_TRAININGS = 1.5, 25
# Standard deviations of the log penalties when each weight has its own. However many they are, the
# training distribution reaches only so far along any one direction, and a hypergradient is one
# direction: the Euclidean norm of a step stays within the spread.
GLOBAL_SPREAD, LOCAL_SPREAD = 1.0, 0.5
# Ten directions must be told from the noise of thousands of perturbations. That takes many draws
# and a small learning rate: with Adam's 1e-2 the hypergradient is noise, hundreds of times too
# large.
MANY_OPTIMIZER = optax.adam(3e-4)


def cross_entropy(params: PyTree, batch: PyTree) -> Scalar:
    """Mean cross-entropy of a linear classifier."""
    scores = batch[0] @ params["weights"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]).mean()


def for_each_tensor(params: PyTree, log_penalty: PyTree) -> dict[str, Array]:
    """One `λ` for all weights, or one for each class, handed to every tensor."""
    return log_penalty if isinstance(log_penalty, dict) else dict.fromkeys(params, log_penalty)


def penalty(params: PyTree, log_penalty: PyTree) -> Scalar:
    """`Σ exp(λ) w²`, with one `λ` for all weights, one for each class, or one for each weight."""
    log_penalty = for_each_tensor(params, log_penalty)
    return sum(jnp.sum(jnp.exp(log_penalty[name]) * params[name] ** 2) for name in params)


PROBLEM = BilevelProblem(
    inner=lambda w, lam, batch: cross_entropy(w, batch) + penalty(w, lam),
    outer=lambda w, lam, batch: cross_entropy(w, batch),
)


def retrain(log_penalty: PyTree, start: PyTree, batch: PyTree) -> PyTree:
    """The classifier trained from scratch, by L-BFGS."""
    # One program for all numbers of penalties: compiling it takes longer than running it.
    each = jax.tree.map(
        lambda lam, w: jnp.broadcast_to(jnp.asarray(lam, w.dtype), w.shape),
        for_each_tensor(start, log_penalty),
        start,
    )
    return _retrain(each, start, batch)


@jax.jit
def _retrain(log_penalty: PyTree, start: PyTree, batch: PyTree) -> PyTree:
    solver = optax.lbfgs()

    def objective(w: PyTree) -> Scalar:
        return PROBLEM.inner(w, log_penalty, batch)

    def step(carry: tuple, _: None) -> tuple:
        w, state = carry
        value, grad = optax.value_and_grad_from_state(objective)(w, state=state)
        updates, state = solver.update(grad, state, w, value=value, grad=grad, value_fn=objective)
        return (optax.apply_updates(w, updates), state), None

    (w, _), _ = jax.lax.scan(step, (start, solver.init(start)), None, length=150)
    return w


def load(name: str, examples: int, seed: int) -> tuple[PyTree, PyTree, PyTree]:
    """Training, validation and test batch, pixels in [0, 1]."""
    if name == "digits":
        parts = tabular("digits", seed=seed)
        arrays = [(part.x / 16, part.y) for part in parts]
    else:
        train, test = fashion_mnist()
        order = np.random.default_rng(seed).permutation(len(train.y))[:11_000]
        x = train.x[order].reshape(len(order), -1) / 255
        arrays = [
            (x[:1000], train.y[order[:1000]]),
            (x[1000:], train.y[order[1000:]]),
            (test.x.reshape(len(test.y), -1) / 255, test.y),
        ]
    (x, y), *rest = arrays
    arrays = [(x[:examples], y[:examples]), *rest]
    return tuple((jnp.asarray(x, jnp.float32), jnp.asarray(y.astype(np.int32))) for x, y in arrays)


score = jax.jit(cross_entropy)


def curve(context: Context, train: PyTree, valid: PyTree, start: PyTree) -> float:
    """One penalty: the global hypernetwork's curve. Returns where descent along it ends."""
    steps = context.options.global_steps // 4
    grid = np.arange(LOWEST + 1, HIGHEST)
    true = np.array([score(retrain(jnp.float32(g), start, train), valid) for g in grid])
    hypernetwork = Hypernetwork(
        Uniform(LOWEST, HIGHEST),
        hidden=(50,),
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, 4 * steps)),
        steps=steps,
    )
    lam = jnp.float32(START)
    key = jax.random.key(context.options.seed)
    state = hypernetwork.init(PROBLEM, start, lam, train, key=key)
    with context.progress("global, one penalty", total=4) as progress:
        for _ in range(4):
            state, _ = hypernetwork.fit(PROBLEM, state, lam, train)
            progress.advance()
    predicted = np.array([score(hypernetwork.response(state, jnp.float32(g)), valid) for g in grid])
    context.plot(
        "curve",
        {
            "trained at each point": Curve(grid, true),
            "hypernetwork": Curve(grid, predicted),
        },
        x="log penalty",
        y="validation loss",
    )
    context.measure("curve", np.max(np.abs(true - predicted)))
    for _ in range(60):
        lam -= 3 * hypernetwork.hypergradient(PROBLEM, state, lam, train, valid).grad
    context.measure("optimum", abs(float(lam) - grid[np.argmin(true)]))
    return float(lam)


def descend(
    hypernetwork: Hypernetwork,
    state: PyTree,
    lam: PyTree,
    step: float,
    train: PyTree,
    valid: PyTree,
) -> tuple[PyTree, float]:
    """Down the predicted loss, as far as it falls and the network has been trained.

    Returns the penalties found by steps of the given length, and the loss predicted there.
    """
    found, predicted = lam, np.inf
    while hypernetwork.inside(state, lam):
        result = hypernetwork.hypergradient(PROBLEM, state, lam, train, valid)
        if result.value >= predicted:
            break
        found, predicted = lam, float(result.value)
        scale = step / optax.global_norm(result.grad)
        lam = jax.tree.map(lambda value, g: value - scale * g, lam, result.grad)  # noqa: B023
    return found, predicted


def classes_global(
    context: Context, train: PyTree, valid: PyTree, start: PyTree, centre: Array
) -> tuple:
    """One penalty for each class, over draws around `centre`.

    Returns the losses at draws of the distribution (as the hypernetwork predicts them, as
    retrained, and as a Gaussian process on other retrained draws predicts them), the penalties
    found by descent, the loss predicted there, and the seconds it took without retraining.
    """
    options, begin = context.options, time.perf_counter()
    steps = options.global_steps // 4
    hypernetwork = Hypernetwork(
        Normal(centre, CLASS_SPREAD),
        hidden=(50,),
        optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, 4 * steps)),
        steps=steps,
        samples=8,
    )
    fit_key, draw_key, process_key = jax.random.split(jax.random.key(options.seed + 2), 3)
    state = hypernetwork.init(PROBLEM, retrain(centre, start, train), centre, train, key=fit_key)
    with context.progress("global, one penalty a class", total=4) as progress:
        for _ in range(4):
            state, _ = hypernetwork.fit(PROBLEM, state, centre, train)
            progress.advance()
    found, predicted = descend(hypernetwork, state, centre, 0.25 * CLASS_SPREAD, train, valid)
    seconds = time.perf_counter() - begin

    def retrained(key: Array, number: int) -> tuple[Array, np.ndarray]:
        draws = centre + CLASS_SPREAD * jax.random.normal(key, (number, CLASSES))
        return draws, np.array([score(retrain(lam, start, train), valid) for lam in draws])

    draws, true = retrained(draw_key, options.draws)
    there = np.array([score(hypernetwork.response(state, lam), valid) for lam in draws])
    process = GaussianProcessRegressor(
        ConstantKernel() * RBF(), normalize_y=True, random_state=0
    ).fit(*retrained(process_key, PROCESS_TRAININGS))
    return np.column_stack([there, true, process.predict(draws)]), found, predicted, seconds


def many_global(
    context: Context, train: PyTree, valid: PyTree, start: PyTree, centre: PyTree
) -> tuple:
    """One penalty for each weight, the global way, over draws around `centre`.

    Returns predicted and retrained losses at draws of the distribution, the penalties found by
    descent within it, the loss predicted there, and the seconds it all took without retraining.
    """
    options, begin = context.options, time.perf_counter()
    rounds = options.many_rounds // 2
    hypernetwork = Hypernetwork(
        Normal(centre, GLOBAL_SPREAD),
        bottleneck=10,
        optimizer=MANY_OPTIMIZER,
        steps=20,
        samples=8,
    )
    key = jax.random.key(options.seed + 1)
    state = hypernetwork.init(PROBLEM, retrain(centre, start, train), centre, train, key=key)
    with context.progress("global, one penalty a weight", total=rounds) as progress:
        for _ in range(rounds):
            state, _ = hypernetwork.fit(PROBLEM, state, centre, train)
            progress.advance()

    found, predicted = descend(hypernetwork, state, centre, 0.25 * GLOBAL_SPREAD, train, valid)
    seconds = time.perf_counter() - begin

    pairs = []
    for draw in jax.random.split(key, options.draws):
        keys = dict(zip(start, jax.random.split(draw, len(start)), strict=True))
        lam = {
            name: lam + GLOBAL_SPREAD * jax.random.normal(keys[name], lam.shape)
            for name, lam in centre.items()
        }
        there = score(hypernetwork.response(state, lam), valid)
        pairs.append((float(there), float(score(retrain(lam, start, train), valid))))
    return np.array(pairs), found, predicted, seconds


def many_local(
    context: Context, train: PyTree, valid: PyTree, start: PyTree, many: PyTree
) -> tuple:
    """One penalty for each weight, the local way: as `many_global`, with pairs along the path."""
    options, begin = context.options, time.perf_counter()
    local = Hypernetwork(
        Perturbation(LOCAL_SPREAD),
        bottleneck=10,
        optimizer=MANY_OPTIMIZER,
        steps=20,
        samples=8,
    )
    step = optax.chain(optax.normalize_by_update_norm(), optax.scale(-LOCAL_SPREAD))
    tuner = Tuner(PROBLEM, local, optimizer=step, train_steps=1)
    key = jax.random.key(options.seed)
    state = tuner.init(retrain(many, start, train), many, train, key=key)
    path = [many]
    losses = []
    with context.progress("local, one penalty a weight", total=options.many_rounds) as progress:
        for index in range(1, options.many_rounds + 1):
            state = tuner.train(state, train)
            predicted = float(score(local.response(state.estimator, state.hparams), valid))
            losses.append(predicted)
            if index % (options.many_rounds // 10) == 0:
                path.append(state.hparams)
            if index < options.many_rounds:
                state, _ = tuner.tune(state, train, valid)
            progress.advance(incumbent=predicted)
    seconds = time.perf_counter() - begin
    every = options.many_rounds // 10
    retrained = [float(score(retrain(lam, start, train), valid)) for lam in path[1:]]
    pairs = np.column_stack([losses[every - 1 :: every], retrained])
    return pairs, path[-1], np.array(losses), seconds


def search(
    start: PyTree, train: PyTree, valid: PyTree, trials: int, seed: int
) -> tuple[Array, list[float]]:
    """Tree-structured Parzen estimators over one log penalty for each class."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        names = [f"class {index}" for index in range(CLASSES)]
        by_class = [trial.suggest_float(name, LOWEST, HIGHEST) for name in names]
        return float(score(retrain(jnp.array(by_class), start, train), valid))

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True))
    study.optimize(objective, n_trials=trials)
    best = jnp.array([study.best_params[f"class {i}"] for i in range(CLASSES)])
    return best, [trial.value for trial in study.trials]


@experiment(
    paper="Lorraine and Duvenaud 2018, arXiv:1802.09419",
    options=[
        Option("data", "fashion_mnist", quick="digits", choices=("fashion_mnist", "digits")),
        Option("examples", 500, quick=60, help="training examples"),
        Option("global_steps", 6000, quick=2000, help="steps of the global hypernetwork"),
        Option("many_rounds", 300, quick=50, help="outer steps with one penalty a weight"),
        Option("draws", 20, quick=5, help="draws at which the global prediction is checked"),
        Option("trials", 50, quick=10, help="trainings of Bayesian search"),
    ],
    claims=[
        Claim(
            "curve",
            "predicted validation curve within 0.05 of the true one",
            at_most=0.05,
        ),
        Claim("optimum", "descent ends within 1.0 of the best of the grid", at_most=1.0),
        Claim(
            "class",
            "one penalty a class, retrained: validation loss over that of one for all",
            at_most=0.99,
        ),
        Claim(
            "local",
            "local, retrained: validation loss over that of the one penalty where it starts",
            at_most=0.999,
        ),
        Claim(
            "prediction",
            "local: predicted and retrained final loss within 10 %",
            at_most=0.1,
        ),
        Claim(
            "draws",
            "global: predicted and retrained losses at draws of one penalty a class within 10 %",
            at_most=0.1,
            # The quick run trains the network for a third of the steps.
            quick=0.2,
        ),
        Claim(
            "process",
            "error there over that of a Gaussian process on 25 trainings (ratio of rms)",
            at_most=1.0,
        ),
    ],
)
def run(context: Context) -> None:
    """One penalty, then one for each class, then one for each weight."""
    options = context.options
    train, valid, test = load(options.data, options.examples, options.seed)
    start = {
        "weights": jnp.zeros((train[0].shape[1], CLASSES)),
        "bias": jnp.zeros(CLASSES),
    }
    count = sum(leaf.size for leaf in jax.tree.leaves(start))
    single = curve(context, train, valid, start)

    ten = jnp.full(CLASSES, single, jnp.float32)
    by_draws, by_ten, ten_prediction, ten_seconds = classes_global(
        context, train, valid, start, ten
    )
    many = jax.tree.map(lambda w: jnp.full_like(w, single), start)
    draws, by_global, global_prediction, global_seconds = many_global(
        context, train, valid, start, many
    )
    path, by_local, losses, local_seconds = many_local(context, train, valid, start, many)
    begin = time.perf_counter()
    by_class, values = search(start, train, valid, options.trials, options.seed)
    search_seconds = time.perf_counter() - begin
    context.plot(
        "many",
        {
            f"local hypernetwork, {count} penalties (predicted)": Curve(
                np.linspace(0, local_seconds, len(losses)), losses
            ),
            "the same, retrained": Curve(
                np.linspace(0, local_seconds, len(path) + 1)[1:], path[:, 1]
            ),
            f"Bayesian search, {CLASSES} penalties": Curve(
                np.linspace(0, search_seconds, len(values)),
                np.minimum.accumulate(values),
            ),
        },
        x="seconds",
        y="validation loss",
    )
    context.table(
        "predicted and retrained losses",
        [
            {"where": where, "retrained": true, "predicted": there}
            for where, pairs in (
                ("global, draws by class", by_draws),
                ("Gaussian process, draws by class", by_draws[:, [2, 1]]),
                ("global, draws by weight", draws),
                ("local, path", path),
            )
            for there, true in pairs[:, :2]
        ],
    )
    with context.figure("predicted", width=12, height=4) as figure:
        named = (
            ("global: draws of one penalty a class", by_draws),
            ("global: draws of one a weight", draws),
            ("local: along the path", path),
        )
        for axes, (title, pairs) in zip(figure.subplots(1, 3), named, strict=True):
            ends = [pairs.min(), pairs.max()]
            axes.plot(ends, ends, color="black", linewidth=1)
            axes.scatter(pairs[:, 1], pairs[:, 0], label="hypernetwork")
            if pairs is by_draws:
                axes.scatter(pairs[:, 1], pairs[:, 2], marker="x", label="Gaussian process")
                axes.legend()
            axes.set(xlabel="retrained validation loss", ylabel="predicted", title=title)
    context.say(
        f"At draws of {count} penalties the global hypernetwork's predictions are up to "
        f"{worst(draws):.1%} off; their correlation with the retrained losses is "
        f"{correlation(draws):.2f}. With one penalty a class it is {correlation(by_draws):.2f}."
    )

    chosen = {
        "one for all: global hypernetwork": (1, jnp.float32(single), np.nan),
        "one a class: Bayesian search": (CLASSES, by_class, np.nan),
        "one a class: global hypernetwork": (CLASSES, by_ten, ten_prediction),
        "one a weight: global hypernetwork": (count, by_global, global_prediction),
        "one a weight: local hypernetwork": (count, by_local, path[-1, 0]),
    }
    seconds = (np.nan, search_seconds, ten_seconds, global_seconds, local_seconds)
    rows = []
    for (name, (number, lam, predicted)), time_ in zip(chosen.items(), seconds, strict=True):
        params = retrain(lam, start, train)
        rows.append(
            {
                "penalties": name,
                "number": number,
                "seconds": time_,
                "predicted": float(predicted),
                "training": float(score(params, train)),
                "validation": float(score(params, valid)),
                "test": float(score(params, test)),
            }
        )
    context.table("retrained at the chosen penalties", rows)
    of_one = [row["validation"] / rows[0]["validation"] for row in rows]
    context.measure("class", of_one[2])
    context.measure("local", of_one[-1])
    context.measure("prediction", abs(path[-1, 0] / path[-1, 1] - 1))
    errors = by_draws[:, [0, 2]] - by_draws[:, 1:2]
    ours, theirs = np.sqrt(np.mean(errors**2, axis=0))
    context.measure("draws", worst(by_draws))
    context.measure("process", ours / theirs)


def worst(pairs: np.ndarray) -> float:
    """The largest relative error of a prediction."""
    return float(np.max(np.abs(pairs[:, 0] / pairs[:, 1] - 1)))


def correlation(pairs: np.ndarray) -> float:
    """Of predicted with retrained losses."""
    return float(np.corrcoef(pairs[:, 0], pairs[:, 1])[0, 1])


if __name__ == "__main__":
    raise SystemExit(run.main())
