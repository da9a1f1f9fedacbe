"""Learned responses against retraining: exact where they can be, and how far they reach.

What a self-tuning network predicts for a change of hyperparameters, compared with what training
again gives. Three settings, each with a truth in closed form or by retraining to the optimum.

A linear network of two layers with an L2 penalty on its input-output Jacobian has a best response
that gating the hidden units expresses exactly (MacKay et al. 2019, theorem 2): the structured layer
with the gates of the theorem must be the retrained network to numerical precision.

Ridge regression on the diabetes data shows the bias that a perturbation brings to the weights of
STN, and that Delta-STN does not have it; and how well weights and validation loss are predicted
when the log penalty moves away from its centre.

A softmax classifier with a hidden layer on digits has no closed form: it is trained again at each
point.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree, Scalar

from experiments.data import Part, tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad.problem import BilevelProblem
from hypergrad.self_tuning import Perturbation, SelfTuning, SelfTuningModel, to_self_tuning
from hypergrad.self_tuning.gating import gated
from hypergrad.self_tuning.layers import SelfTuningLinear

CENTRE = jnp.array(-1.0)


# -- a linear network with a penalised Jacobian ------------------------------------------------


def linear_network_error(key: Array) -> float:
    """Largest relative difference of the gated network's outputs from the retrained one's."""
    x = jax.random.normal(key, (60, 6)) * jnp.array([4.0, 2.0, 1.0, 0.7, 0.4, 0.2])
    y = x @ jnp.linspace(-1, 1, 6) + jnp.sin(jnp.arange(60.0))
    _, singular, axes = jnp.linalg.svd(x, full_matrices=False)
    top = jnp.linalg.lstsq(x @ axes.T, y)[0]

    def rows(log_penalty: Array) -> Array:
        return jax.nn.sigmoid(2 * jnp.log(singular) - log_penalty)

    base = eqx.nn.Linear(6, 6, use_bias=False, key=key)
    base = eqx.tree_at(lambda m: m.weight, base, rows(CENTRE)[:, None] * axes)
    layer = SelfTuningLinear(base, 1, key=key)
    worst = 0.0
    for change in (-2.0, -0.5, 0.5, 2.0, 5.0):
        lam = CENTRE + change
        gates = (rows(lam) - rows(CENTRE))[:, None]
        placed = eqx.tree_at(lambda n: (n.response[0].weight, n.gate), layer, (axes, gates))
        predicted = jax.vmap(gated(placed, jnp.ones(1), False))(x) @ top
        retrained = x @ jnp.linalg.solve(x.T @ x + jnp.exp(lam) * jnp.eye(6), x.T @ y)
        gap = jnp.max(jnp.abs(predicted - retrained)) / jnp.max(jnp.abs(retrained))
        worst = max(worst, float(gap))
    return worst


# -- ridge regression --------------------------------------------------------------------------


def squared_error(model: PyTree, batch: PyTree) -> Scalar:
    """Half the mean squared error."""
    return 0.5 * jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)


RIDGE = BilevelProblem(
    inner=lambda m, lam, b: squared_error(m, b) + 0.5 * jnp.exp(lam) * m.squared_norm(),
    outer=lambda m, lam, b: squared_error(m, b),
)


def ridge_solution(batch: PyTree, lam: Array) -> Array:
    """The weights in closed form."""
    x, y = batch
    hessian = x.T @ x / len(y) + jnp.exp(lam) * jnp.eye(x.shape[1])
    return jnp.linalg.solve(hessian, x.T @ y / len(y))


def train_ridge(batch: PyTree, scale: float, centred: bool, steps: int, key: Array) -> PyTree:
    """The self-tuning model at the centre, trained with perturbations of this scale."""
    decay = optax.cosine_decay_schedule(1.0, steps)
    estimator = SelfTuning(
        optax.chain(optax.sgd(0.15, momentum=0.9), optax.scale_by_schedule(decay)),
        response_optimizer=optax.adam(optax.cosine_decay_schedule(0.02, steps)),
        perturbation=Perturbation(scale),
        centred=centred,
        # On the whole data the gradient noise of one common perturbation vanishes at the optimum of
        # Delta-STN; STN has no such point, and averages over many perturbations.
        groups=1 if centred else None,
        steps=steps,
    )
    layer = eqx.nn.Linear(batch[0].shape[1], "scalar", use_bias=False, key=key)
    model = to_self_tuning(layer, CENTRE, key=key)
    state = estimator.init(RIDGE, model, CENTRE, batch, key=key)
    state, _ = estimator.fit(RIDGE, state, CENTRE, batch)
    return state.params


def weight_error(model: SelfTuningModel, truth: Array) -> float:
    """Relative error of the weights at the model's response input."""
    return float(jnp.linalg.norm(model.fold().weight[0] - truth) / jnp.linalg.norm(truth))


def standardised(part: Part, by: Part) -> PyTree:
    """A batch, with the mean and the standard deviation of `by` taken out."""
    x, y = (part.x - by.x.mean(0)) / by.x.std(0), (part.y - by.y.mean()) / by.y.std()
    return jnp.asarray(x), jnp.asarray(y)


# -- a network on digits -----------------------------------------------------------------------


def cross_entropy(model: PyTree, batch: PyTree) -> Scalar:
    """Mean cross-entropy."""
    scores = jax.vmap(model)(batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]).mean()


DIGITS = BilevelProblem(
    inner=lambda m, lam, b: cross_entropy(m, b) + jnp.exp(lam) * m.squared_norm(),
    outer=lambda m, lam, b: cross_entropy(m, b),
)
DIGITS_CENTRE = jnp.array(-5.0)


def retrain(start: SelfTuningModel, lam: Array, batch: PyTree, steps: int) -> SelfTuningModel:
    """The base weights trained on at a fixed penalty, from the weights at the centre."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    weights, constant = eqx.partition(start.fold(), eqx.is_inexact_array)

    def loss(weights: PyTree) -> Scalar:
        network = eqx.combine(weights, constant)
        penalty = sum(jnp.sum(layer.weight**2) for layer in network.layers)
        return cross_entropy(network, batch) + jnp.exp(lam) * penalty

    def step(carry: tuple, _: None) -> tuple:
        weights, moments = carry
        updates, moments = optimizer.update(jax.grad(loss)(weights), moments)
        return (optax.apply_updates(weights, updates), moments), None

    (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), None, length=steps)
    return eqx.combine(weights, constant)


@experiment(
    paper="MacKay et al. 2019, arXiv:1903.03088; Bae and Grosse 2020, arXiv:2010.13514",
    options=[
        Option("steps", 4000, quick=1200, help="training steps on ridge regression"),
        Option("network_steps", 4000, quick=400, help="training steps on digits"),
        Option("points", 9, quick=5, help="hyperparameters at which the network is trained again"),
    ],
    claims=[
        Claim("exact", "the structured response is the closed form", at_most=1e-10),
        Claim("stn bias", "weights of STN are biased by 2 % at scale 1", at_least=0.02),
        Claim("delta bias", "weights of Delta-STN are not biased", at_most=1e-6),
        Claim("weights", "half a unit away, ridge weights within 5 %", at_most=0.05),
        Claim("losses", "predicted and true losses of the network correlate", at_least=0.9),
    ],
    x64=True,
)
def run(context: Context) -> None:
    """Measure all three settings."""
    options = context.options
    key = jax.random.key(options.seed)
    context.measure("exact", linear_network_error(key))

    data = tabular("diabetes", seed=options.seed)
    train, valid = (standardised(part, data.train) for part in (data.train, data.validation))
    truth = ridge_solution(train, CENTRE)
    scales = [0.1, 1.0] if options.quick else [0.1, 0.3, 0.5, 1.0, 1.5, 2.0]
    errors: dict[str, list[float]] = {"STN": [], "Delta-STN": []}
    models = {}
    with context.progress("ridge", total=2 * len(scales)) as progress:
        for name, centred in (("STN", False), ("Delta-STN", True)):
            for scale in scales:
                model = train_ridge(train, scale, centred, options.steps, key)
                models[name, scale] = model
                errors[name].append(weight_error(model, truth))
                progress.advance()
    context.plot(
        "bias",
        {name: Curve(scales, np.maximum(error, 1e-16)) for name, error in errors.items()},
        x="scale of the perturbation of the log penalty",
        y="relative error of the base weights",
        y_scale="log",
    )
    context.measure("stn bias", errors["STN"][scales.index(1.0)])
    context.measure("delta bias", max(errors["Delta-STN"]))

    model = models["Delta-STN", 0.1 if options.quick else 0.3]
    changes = np.linspace(-1.5, 1.5, 13)
    rows = []
    for change in changes:
        there = ridge_solution(train, CENTRE + change)
        moved = model.at(jnp.full(1, change))
        retrained = 0.5 * jnp.mean((valid[0] @ there - valid[1]) ** 2)
        rows.append(
            (weight_error(moved, there), float(squared_error(moved, valid)), float(retrained))
        )
    weights, predicted, retrained = np.array(rows).T
    context.plot(
        "ridge",
        {"predicted": Curve(changes, predicted), "retrained": Curve(changes, retrained)},
        x="change of the log penalty",
        y="validation loss",
    )
    context.measure("weights", np.max(weights[np.abs(changes) <= 0.5]))

    context.measure("losses", digits(context, key))


def digits(context: Context, key: Array) -> float:
    """Correlation of predicted and true change of the validation loss of a network."""
    options = context.options
    data = tabular("digits", seed=options.seed)
    train = (jnp.asarray(data.train.x[:300] / 16), jnp.asarray(data.train.y[:300]))
    valid = (jnp.asarray(data.validation.x / 16), jnp.asarray(data.validation.y))
    network = eqx.nn.MLP(train[0].shape[1], 10, 16, 1, activation=jnp.tanh, key=key)
    steps = options.network_steps
    estimator = SelfTuning(
        optax.adam(optax.cosine_decay_schedule(5e-3, steps)),
        perturbation=Perturbation(0.5),
        groups=50,
        response_part=1.0,
        steps=steps,
    )
    model = to_self_tuning(network, DIGITS_CENTRE, key=key)
    state = estimator.init(DIGITS, model, DIGITS_CENTRE, train, key=key)
    state, _ = estimator.fit(DIGITS, state, DIGITS_CENTRE, train)
    again = eqx.filter_jit(retrain)
    changes = np.linspace(-1.0, 1.0, options.points)
    predicted, true = [], []
    with context.progress("retraining the network", total=len(changes)) as progress:
        for change in changes:
            moved = state.params.at(jnp.full(1, change), linearised=True)
            predicted.append(float(cross_entropy(moved, valid)))
            network = again(state.params, DIGITS_CENTRE + change, train, steps // 2)
            true.append(float(cross_entropy(network, valid)))
            progress.advance()
    context.plot(
        "digits",
        {"predicted": Curve(changes, predicted), "retrained": Curve(changes, true)},
        x="change of the log weight decay",
        y="validation loss",
    )
    return float(np.corrcoef(predicted, true)[0, 1])


if __name__ == "__main__":
    raise SystemExit(run.main())
