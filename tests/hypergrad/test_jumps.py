"""What a derivative misses is found in the trace, and nothing else is called biased."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.scipy.ndimage import map_coordinates

from hypergrad import (
    BilevelProblem,
    ForwardUnrolled,
    ImplicitDifferentiation,
    InaccurateHypergradientError,
    Newton,
    ProximalStep,
    TruncatedUnrolled,
    Unrolled,
    hypergradient,
    recommend,
)
from hypergrad.jumps import hidden_reads
from hypergrad.outer import SOBA, run
from hypergrad.paths import BiasedHypergradientWarning
from hypergrad.unrolled import StepFunction

KEY = jax.random.key(0)
V = jnp.array([0.3, -1.2, 0.8])
X = jax.random.normal(jax.random.key(1), (20, 3))
Y = X @ jnp.ones(3)
LABELS = jnp.array([0, 1, 2, 0, 1])


def dropout(h, key=KEY):
    uniform = jax.random.uniform(key, X.shape)
    return jnp.where(uniform > h, X / (1 - h), 0).sum()


def turned(h):
    return [jnp.cos(h) * V - jnp.sin(h) * V[::-1], jnp.sin(h) * V + jnp.cos(h) * V[::-1]]


def interpolated(h, swapped=False, end=None):
    x = 4 * h * jnp.linspace(0, 1, 7)
    low, high = jnp.floor(x).astype(int), jnp.ceil(x).astype(int)
    share = 1 - (x - low) if swapped else x - low
    found = (1 - share) * X[low, 0] + share * X[high, 0]
    return (found if end is None else jnp.where(low < end, found, 0)).sum()


@jax.custom_vjp
def straight_through(h):
    return jnp.round(h)


straight_through.defvjp(lambda h: (jnp.round(h), None), lambda _, g: (g,))


@jax.jit
def counted(x):
    return jax.lax.scan(lambda c, u: (c + (u > x), None), x, jnp.linspace(0, 1, 9))[0]


def one_drop(carry, key):
    return carry + jnp.where(jax.random.uniform(key) > carry, 0.1, 0.0), None


@jax.jit
def interp(h):
    """Of the name of a function of JAX that has no jump."""
    return jnp.round(h)


GUILTY = {
    "somebody's interp": (lambda h: h * interp(h), "a rounding"),
    "dropout": (dropout, "a comparison"),
    "bernoulli": (
        lambda h: (jax.random.bernoulli(KEY, 1 - h, X.shape) * X / (1 - h)).sum(),
        "a comparison",
    ),
    "jit": (jax.jit(dropout), "a comparison"),
    "checkpoint": (jax.checkpoint(dropout), "a comparison"),
    "vmap": (
        lambda h: jax.vmap(lambda k: dropout(h, k))(jax.random.split(KEY, 3)).sum(),
        "a comparison",
    ),
    "scan": (lambda h: jax.lax.scan(one_drop, h, jax.random.split(KEY, 3))[0], "a comparison"),
    "round": (lambda h: h * jnp.round(h), "a rounding"),
    "floor": (lambda h: h - jnp.floor(h), "a rounding"),
    "trunc": (lambda h: h * jnp.trunc(h), "a rounding"),
    "nearest neighbour": (lambda h: h * map_coordinates(X, turned(h), order=0).sum(), "a rounding"),
    "wrong neighbour": (lambda h: interpolated(h, swapped=True), "a rounding"),
    "cut interpolation": (lambda h: interpolated(h, end=2), "a rounding"),
    "looked up": (lambda h: h * V[jnp.floor(h * V).astype(int)].sum(), "a rounding"),
    "stepped table": (lambda h: h * jnp.floor(h * V)[jnp.array([0, 1])].sum(), "a rounding"),
    "mod": (lambda h: h % 1.0, "a remainder"),
    "saw": (lambda h: ((3 * h * V) % 1.0 - 0.4) @ V, "a remainder"),
    "index": (lambda h: h * V[h.astype(int)], "a truncation to integers"),
    "truncated": (lambda h: h * jnp.int32(10 * h), "a truncation to integers"),
    "switch": (
        lambda h: jax.lax.switch(h.astype(int), [lambda: h, lambda: 2 * h]),
        "a truncation to integers",
    ),
    "stop_gradient": (lambda h: h * jax.lax.stop_gradient(h), "a stop_gradient"),
    "normaliser": (
        lambda h: jnp.sum(h * V / jax.lax.stop_gradient(jnp.max(h * V))),
        "a stop_gradient",
    ),
    "argmax": (lambda h: h * jnp.argmax(h * V + V[::-1]), "an argmax"),
    "categorical": (lambda h: h * V[jax.random.categorical(KEY, h * V)], "an argmax"),
    "argsort": (lambda h: h * V[jnp.argsort(h * V + V[::-1])][2], "a sorting order"),
    "top_k": (lambda h: h * V[jax.lax.top_k(h * V + V[::-1], 1)[1]].sum(), "a sorting order"),
    "cond": (lambda h: jax.lax.cond(h > 0.5, lambda: h, lambda: 2 * h), "a comparison"),
    "while": (
        lambda h: h * jax.lax.while_loop(lambda c: c < h, lambda c: c + 1.0, 0.0),
        "a comparison",
    ),
    "trimmed loss": (
        lambda h: h * jnp.where(jnp.abs(X - 1) < h, (X - 1) ** 2, 0.0).sum(),
        "a comparison",
    ),
    "hard threshold": (lambda h: h * jnp.where(jnp.abs(V) > h, V, 0).sum(), "a comparison"),
    "accuracy": (lambda h: h + jnp.mean(jax.nn.sigmoid(h * V) > 0.5), "a comparison"),
    "pairs": (lambda h: h + jnp.sum(h * V[:, None] > h**2 * V[None, :]), "a comparison"),
    "sign": (lambda h: h * jnp.sign(h - V).sum(), "a sign"),
    "custom_vjp": (lambda h: h * straight_through(h), "a rounding"),
    "searchsorted": (lambda h: h * jnp.searchsorted(jnp.sort(V), h), "a comparison"),
    "sorted along": (
        lambda h: h * jax.lax.sort((X[:, 0] * h + X[:, 1], X[:, 2]), num_keys=1)[1][:3].sum(),
        "a sorting order",
    ),
    "branches": (
        lambda h: jax.lax.cond(h < 0.5, lambda: h**2, lambda: 3 * h),
        "a comparison",
    ),
    "many small steps": (lambda h: h + jnp.round(1e5 * h) / 1e5, "a rounding"),
    "one of many": (
        lambda h: h + jnp.mean(jax.random.uniform(KEY, (3000,)) > h),
        "a comparison",
    ),
    "how many are not zero": (
        lambda h: h + jnp.count_nonzero(jnp.maximum(jnp.abs(X) - h, 0)),
        "a comparison",
    ),
    "the largest's label": (
        lambda h: jnp.where(h * X + X[::-1] == jnp.max(h * X + X[::-1]), X, 0).sum() * h,
        "a comparison",
    ),
    "nearest neighbours in a line": (
        lambda h: h * map_coordinates(X, [h * jnp.arange(5.0), jnp.zeros(5)], order=0).sum(),
        "a rounding",
    ),
    "bits": (
        lambda h: h + jax.lax.bitcast_convert_type(h, jnp.int32),
        "the operation `bitcast_convert_type`",
    ),
    "called twice": (lambda h: h * counted(jnp.asarray(0.2)) + counted(h), "a comparison"),
    "in scan's xs": (
        lambda h: jax.lax.scan(lambda c, u: (c + (u > h) * h, None), 0.0, h * V)[0],
        "a comparison",
    ),
    "cut-off": (
        lambda h: jnp.linalg.lstsq(X * jnp.array([1, 0.5, 0.1]), Y, rcond=h)[0].sum(),
        "a comparison",
    ),
}


@pytest.mark.parametrize("name", GUILTY)
def test_what_no_derivative_sees_is_found(name):
    function, reason = GUILTY[name]
    assert reason in hidden_reads(jax.make_jaxpr(function)(jnp.asarray(0.3)), range(1))[0]


PADDED = jnp.array([True, False, False])
U = jnp.array([0.2, 0.6, 0.9])


def of_neighbours(h, y, ends_meet):
    place = jnp.clip(jnp.searchsorted(jnp.array([1.0, 2.0]), 4 * h), 0, 1)
    share = 4 * h - place
    return (1 - share) * y[place] + share * y[place + 1] if ends_meet else share * y[place]


def each_branch(h, x, other):
    return jax.vmap(lambda v: jax.lax.cond(v > h, lambda: v * h, lambda: other(h)))(x).sum()


# What is asked of data may be true or false, whatever numbers stand for it.
OF_DATA = {
    "kept and not padded": (
        lambda h, x, pad: jnp.where((h < U) & ~pad, x / (1 - h), 0).sum(),
        (V, PADDED),
        "a comparison",
    ),
    "among the old": (
        lambda h, x, age: h + jnp.sum((jax.nn.sigmoid(h * x) > 0.5) & (age > 30)),
        (V, 50 * V),
        "a comparison",
    ),
    "of one label": (
        lambda h, x, y: h + jnp.mean((jax.nn.sigmoid(x - h) > 0.5) & (y == 7)),
        (V, jnp.array([7, 3, 7])),
        "a comparison",
    ),
    "soft, of one label": (
        lambda h, x, y: jnp.mean(jnp.where(y == 7, jax.nn.relu(x - h), 0)),
        (V, jnp.array([7, 3, 7])),
        None,
    ),
    "one branch each": (
        lambda h, x: each_branch(h, x, lambda h: h),
        (V,),
        "a comparison",
    ),
    "branches that meet, each": (
        lambda h, x: each_branch(h, x, lambda h: h * h),
        (V,),
        None,
    ),
    "neighbours by bisection": (lambda h, y: of_neighbours(h, y, True), (V,), None),
    "steps by bisection": (lambda h, y: of_neighbours(h, y, False), (V,), "a comparison"),
    "stopped for some": (
        lambda h, x: (jnp.where(x > 0, jax.lax.stop_gradient(h * x), h * x) ** 2).sum(),
        (V,),
        "a stop_gradient",
    ),
    "stopped and not missed": (
        lambda h, x: ((h * x - jax.lax.stop_gradient(jnp.mean(h * x))) ** 2).sum(),
        (V,),
        None,
    ),
    "below zero": (
        lambda h, x: x @ x * jax.lax.cond(h < -1, lambda: h, lambda: 2 * h),
        (V,),
        "a comparison",
    ),
    "below zero, branches that meet": (
        lambda h, x: x @ x * jax.lax.cond(h < -1, lambda: h, lambda: 2 * h + 1),
        (V,),
        None,
    ),
}


@pytest.mark.parametrize("name", OF_DATA)
def test_whatever_the_data(name):
    function, data, reason = OF_DATA[name]
    program = jax.make_jaxpr(function)(jnp.asarray(0.3), *data)
    assert hidden_reads(program, range(1)) == [() if reason is None else (reason,)]


def sparsemax(z):
    descending = jnp.sort(z)[::-1]
    support = 1 + jnp.arange(1, z.size + 1) * descending > jnp.cumsum(descending)
    threshold = (jnp.where(support, descending, 0).sum() - 1) / support.sum()
    return jnp.maximum(z - threshold, 0)


def block_norms():
    return jnp.linalg.norm(X, axis=1)


TREE = {"a": V, "b": X}

INNOCENT = {
    "turn": lambda h: jnp.cos(2 * jnp.pi * ((h * V) % 1.0)) @ V,
    "triangle wave of a remainder": lambda h: jnp.abs(h % 1.0 - 0.5),
    "parabolas in a row": lambda h: jnp.fmod(4 * h, 1.0) * (1 - jnp.fmod(4 * h, 1.0)),
    "relu": lambda h: jax.nn.relu(h * X).sum(),
    "leaky relu": lambda h: jax.nn.leaky_relu(h * X, h).sum(),
    "elu": lambda h: jax.nn.elu(h * X).sum(),
    "celu": lambda h: jax.nn.celu(h * X, h).sum(),
    "gelu": lambda h: jax.nn.gelu(h * X).sum(),
    "hard tanh": lambda h: jax.nn.hard_tanh(h * X).sum(),
    "softplus": jax.nn.softplus,
    "log sigmoid": lambda h: jax.nn.log_sigmoid(h * X).sum(),
    "clip": lambda h: jnp.clip(h * X, 0, h).sum(),
    "abs": lambda h: jnp.abs(h * X).sum(),
    "gamma": lambda h: jax.scipy.special.gamma(h + V**2).sum(),
    "triangle wave": lambda h: jnp.abs(h - jnp.round(h)),
    "linear interpolation": interpolated,
    "interpolation of one number": lambda h: (
        (1 - (10 * h - jnp.floor(10 * h))) * X[jnp.floor(10 * h).astype(int), 0]
        + (10 * h - jnp.floor(10 * h)) * X[jnp.floor(10 * h).astype(int) + 1, 0]
    ),
    "bilinear": lambda h: map_coordinates(h * X, turned(h), order=1).sum(),
    "bilinear, nearest": lambda h: map_coordinates(X, turned(h), order=1, mode="nearest").sum(),
    "bilinear of many": lambda h: jax.vmap(lambda x: map_coordinates(x, turned(h), order=1))(
        jnp.stack([X, h * X])
    ).sum(),
    "softmax": lambda h: jax.nn.softmax(X / h)[0, 0],
    "logsumexp": lambda h: jax.nn.logsumexp(h * X),
    "cross-entropy": lambda h: optax.softmax_cross_entropy_with_integer_labels(
        X[:5] / h, LABELS
    ).mean(),
    "binary cross-entropy": lambda h: optax.sigmoid_binary_cross_entropy(h * X, X).mean(),
    "focal loss": lambda h: optax.sigmoid_focal_loss(h * X, X, gamma=h).sum(),
    "huber": lambda h: optax.huber_loss(X, delta=h).sum(),
    "huber by where": lambda h: jnp.where(
        jnp.abs(X) < h, 0.5 * X**2, h * (jnp.abs(X) - 0.5 * h)
    ).sum(),
    "biweight": lambda h: jnp.where(
        jnp.abs(X) < h, h**2 / 6 * (1 - (1 - (X / h) ** 2) ** 3), h**2 / 6
    ).sum(),
    "hinge by where": lambda h: jnp.where(h * X < 1, 1 - h * X, 0).sum(),
    "pinball": lambda h: jnp.where(X - h > 0, h * (X - h), (h - 1) * (X - h)).sum(),
    "soft threshold": lambda h: (jnp.sign(h * X) * jnp.maximum(jnp.abs(h * X) - h, 0)).sum(),
    "soft threshold by where": lambda h: jnp.where(h < X, X - h, jnp.where(-h > X, X + h, 0)).sum(),
    "block threshold": lambda h: jnp.where(
        (block_norms() > h)[:, None], X * (1 - h / block_norms())[:, None], 0
    ).sum(),
    "clipped gradients": lambda h: (
        optax.clip_by_global_norm(h).update(TREE, optax.EmptyState())[0]["a"].sum()
    ),
    "adamw": lambda h: (
        optax.adamw(h, b1=h, weight_decay=h).update(TREE, optax.adamw(h).init(TREE), TREE)[0]
    )["a"].sum(),
    "schedule": lambda h: (
        optax.cosine_decay_schedule(h, 10)(3) + optax.polynomial_schedule(h, 0.0, h, 10)(3)
    ),
    "where on data": lambda h: jnp.where(X > 0, h * X, 0).sum(),
    "labels": lambda h: h * jnp.mean(jnp.argmax(X[:5], 1) == LABELS),
    "safe where": lambda h: jnp.where(h * X == 0, 1.0, h * X).sum(),
    "safe norm": lambda h: jnp.where(
        jnp.sqrt(jnp.sum((h * X) ** 2)) > 0, h * X / jnp.sqrt(jnp.sum((h * X) ** 2)), 0
    ).sum(),
    "solve": lambda h: jnp.linalg.solve(h * jnp.eye(3) + 1, V).sum(),
    "log-determinant": lambda h: jnp.linalg.slogdet(h * jnp.eye(3))[1],
    "cholesky": lambda h: jnp.linalg.cholesky(h * jnp.eye(3)).sum(),
    "pseudo-inverse": lambda h: jnp.linalg.pinv(h * jnp.eye(3)).sum(),
    "least squares": lambda h: jnp.linalg.lstsq(h * X, Y)[0].sum(),
    "interpolation": lambda h: jnp.interp(h, jnp.sort(V), V),
    "quantile": lambda h: jnp.quantile(h * V, 0.3),
    "sort": lambda h: jnp.sort(h * V)[0],
    "batch norm": lambda h: jax.nn.standardize(h * X).sum(),
    "gamma sample": lambda h: jax.random.gamma(KEY, h),
    "gumbel softmax": lambda h: jax.nn.softmax((V + jax.random.gumbel(KEY, (3,))) / h)[0],
    "truncated normal": lambda h: jax.random.truncated_normal(KEY, -h, h),
    "a constant times the size": lambda h: h * jnp.argmax(h * V),
    "noise": lambda h: (X + h * jax.random.normal(KEY, X.shape)).sum(),
    "fixed mask": lambda h: h * jnp.where(jax.random.uniform(KEY, X.shape) > 0.5, X, 0).sum(),
    "normal cdf": lambda h: jax.scipy.stats.norm.logcdf(h * X).sum(),
    "sparsemax": lambda h: sparsemax(V / h) @ V,
    "simplex": lambda h: optax.projections.projection_simplex(V * h) @ V,
    "ball": lambda h: optax.projections.projection_l1_ball(V, h) @ V,
    "branches that meet": lambda h: jax.lax.cond(h < 0.5, lambda: h, lambda: 2 * h - 0.5),
    "neighbours": lambda h: map_coordinates(X, [h * jnp.arange(5.0), jnp.zeros(5)], order=1).sum(),
    "normal quantile": jax.scipy.stats.norm.ppf,
    "where the largest is": lambda h: jnp.where(h * X == jnp.max(h * X), h * X, 0).sum(),
    "tail": lambda h: jax.lax.top_k((h * X @ V - Y) ** 2, 5)[0].mean(),
    "unused metric": lambda h: (h**2, jnp.argmax(h * V))[0],
    "cg": lambda h: jax.scipy.sparse.linalg.cg(lambda z: h * z, V)[0].sum(),
}


@pytest.mark.parametrize("name", INNOCENT)
def test_a_decision_between_equal_branches_loses_nothing(name):
    program = jax.make_jaxpr(INNOCENT[name])(jnp.asarray(0.3))
    assert hidden_reads(program, range(1)) == [()]


def masked(w, h, batch, key):
    keep = jax.random.uniform(key, X.shape) > h["rate"]
    loss = jnp.mean((jnp.where(keep, X / (1 - h["rate"]), 0) @ w - Y) ** 2)
    return loss + jnp.exp(h["decay"]) * jnp.sum(w**2)


def clean(w, h, batch, key):
    return jnp.mean((X @ w - Y) ** 2)


DROPOUT = BilevelProblem(masked, clean, stochastic=True)
START = {"rate": jnp.asarray(0.3), "decay": jnp.asarray(-1.0), "lr": jnp.asarray(0.05)}


def sgd(h):
    return optax.sgd(h["lr"])


@pytest.mark.parametrize(
    "estimator",
    [
        ImplicitDifferentiation(Newton()),
        Unrolled(lambda h: optax.sgd(0.1), 4),
        ForwardUnrolled(lambda h: optax.sgd(0.1), 4),
        TruncatedUnrolled(lambda h: optax.sgd(0.1), 4, 2),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_dropout_rate_is_refused_by_name_unless_insisted_on(estimator):
    h = {k: START[k] for k in ("rate", "decay")}
    with pytest.raises(ValueError, match=r"biased.*'rate' through a comparison"):
        hypergradient(DROPOUT, jnp.zeros(3), h, estimator=estimator, key=KEY)
    kept = BilevelProblem(masked, clean, stochastic=True, biased="keep")
    with pytest.warns(BiasedHypergradientWarning, match=r"'rate' through a comparison"):
        out = hypergradient(kept, jnp.zeros(3), h, estimator=estimator, key=KEY)
    assert jnp.isnan(out.info.error)
    assert out.grad["rate"] != 0


@pytest.mark.filterwarnings("ignore::hypergrad.BiasedHypergradientWarning")
def test_strict_refuses_the_kept_part():
    """With small residuals, too: how far it is from the whole is not known."""
    mean = BilevelProblem(
        lambda w, h, b: 0.5 * jnp.sum((w - h * jnp.round(h)) ** 2),
        lambda w, h, b: jnp.sum(w**2),
        biased="keep",
    )
    out = hypergradient(mean, jnp.full(2, 2.4 * 2), 2.4)
    assert out.grad == pytest.approx(4 * 4.8 * 2)
    assert jnp.isnan(out.info.error)
    assert "a part of the gradient only" in str(out.info)
    with pytest.raises(InaccurateHypergradientError, match="leave the hyperparameter to a search"):
        hypergradient(mean, jnp.full(2, 2.4 * 2), 2.4, strict=True)


def test_the_kept_part_is_not_the_derivative_of_the_expectation():
    # With the mask drawn anew at each value, the loss depends on the rate in both ways.
    def expected(rate):
        h = {"rate": rate, "decay": jnp.asarray(-1.0)}
        keys = jax.random.split(KEY, 4000)
        return jnp.mean(jax.vmap(lambda k: masked(jnp.ones(3), h, None, k))(keys))

    difference = (expected(0.35) - expected(0.25)) / 0.1
    assert difference * jax.grad(expected)(0.3) > 0
    assert abs(jax.grad(expected)(0.3) / difference - 1) > 0.3


def test_the_doctor_leaves_it_to_search_and_names_what_nothing_reads():
    h = {**START, "learning_rate": jnp.asarray(0.1)}
    doctor = recommend(DROPOUT, jnp.zeros(3), h, solver=Newton(), update=sgd, steps=4, key=KEY)
    families = {route.name: route.family for route in doctor.routes}
    assert families == {
        "rate": "search",
        "decay": "implicit",
        "lr": "unrolled",
        "learning_rate": "unused",
    }
    assert "biased" in doctor["rate"].reason
    assert "misspelt" in doctor["learning_rate"].reason
    out = hypergradient(DROPOUT, jnp.zeros(3), h, estimator=doctor.estimator, key=KEY)
    assert out.grad["rate"] is None
    assert out.grad["learning_rate"] is None
    assert out.grad["lr"] < 0 < out.grad["decay"]


def test_within_the_training_step_too():
    problem = BilevelProblem(lambda w, h, b: jnp.sum((w - 1) ** 2), lambda w, h, b: jnp.sum(w**2))
    with pytest.raises(ValueError, match=r"biased.*a rounding"):
        hypergradient(
            problem,
            jnp.zeros(2),
            0.3,
            estimator=Unrolled(lambda h: optax.sgd(h, momentum=jnp.round(h)), 3),
        )
    step = StepFunction(lambda w, s, h, b: (w - h * jnp.sign(h - 0.1) * (w - 1), s))
    with pytest.raises(ValueError, match=r"biased.*a sign"):
        hypergradient(problem, jnp.zeros(2), 0.3, estimator=Unrolled(step, 3))


def test_a_proximal_step_is_no_jump_and_a_hard_threshold_is():
    def problem(prox):
        step = ProximalStep(lambda w, lam, b: 0.5 * jnp.sum((w - b * lam) ** 2), prox)
        return BilevelProblem(None, lambda w, lam, b: jnp.sum(w**2), step)

    def soft(point, lam, step):
        return jnp.sign(point) * jnp.maximum(jnp.abs(point) - step * lam, 0)

    def hard(point, lam, step):
        return jnp.where(jnp.abs(point) > step * lam, point * (1 + lam), 0)

    batch = jnp.array([3.0, 0.2])
    out = hypergradient(problem(soft), jnp.array([1.0, 0.0]), 0.5, batch)
    assert abs(out.grad - 2 * 1.0 * 2.0) < 1e-6
    with pytest.raises(ValueError, match=r"biased"):
        hypergradient(problem(hard), jnp.array([1.0, 0.0]), 0.5, batch)


def test_a_projection_onto_a_ball_is_no_jump():
    def ball(point, radius, step):
        return optax.projections.projection_l1_ball(point, radius)

    step = ProximalStep(lambda w, lam, b: 0.5 * jnp.sum((w - b) ** 2), ball)
    problem = BilevelProblem(None, lambda w, lam, b: jnp.sum(w**2), step)
    batch = jnp.array([3.0, 0.2, -2.0])
    solution = ball(batch, 1.5, None)  # (1.25, 0, -0.25), which moves by a half of the radius each
    out = hypergradient(problem, solution, 1.5, batch)
    assert abs(out.grad - 2 * (1.25 + 0.25) / 2) < 1e-5


def test_outer_algorithms_refuse_it():
    h = {k: START[k] for k in ("rate", "decay")}
    with pytest.raises(ValueError, match=r"SOBA.*biased.*'rate'"):
        run(DROPOUT, SOBA(optimizer=optax.sgd(0.1)), jnp.zeros(3), h, None, None, steps=1)
