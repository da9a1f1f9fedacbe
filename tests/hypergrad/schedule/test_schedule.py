"""Learned schedules: the optimizer against optax's own, derivatives, what is learned, its reuse."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem
from hypergrad.schedule import LearnedSchedules, learn_schedules, scheduled
from hypergrad.unrolled import Unrolled

STEPS = 12
# Curvatures a hundred to one: each layer wants a rate of its own.
CURVATURE = {"narrow": jnp.asarray([4.0, 2.0]), "wide": jnp.asarray([0.04, 0.03])}
START = {"narrow": jnp.ones(2), "wide": jnp.ones(2)}


def loss(w, h, batch):
    return 0.5 * sum(jnp.sum(CURVATURE[name] * w[name] ** 2) for name in w)


def distance(w, h, batch):
    return sum(jnp.sum(leaf**2) for leaf in w.values())


PROBLEM = BilevelProblem(loss, distance)


def sgd(settings):
    return optax.sgd(settings["learning_rate"], momentum=settings["momentum"])


def train(optimizer, steps=STEPS):
    @jax.jit
    def run(w):
        def step(carry, _):
            w, state = carry
            updates, state = optimizer.update(jax.grad(loss)(w, None, None), state, w)
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (w, optimizer.init(w)), length=steps)[0][0]

    return run(START)


def test_it_is_optax_where_optax_can_do_the_same():
    rate = jnp.linspace(0.3, 0.1, STEPS)
    groups = ("narrow", "wide")
    mine = scheduled(
        lambda s: optax.adamw(s["rate"], weight_decay=s["decay"]),
        {
            "rate": jnp.stack([rate, 2 * rate], axis=1),
            "decay": jnp.tile(jnp.asarray([0.1, 0.2]), (STEPS, 1)),
        },
        groups,
        lambda name: name,
    )
    theirs = optax.multi_transform(
        {
            "narrow": optax.adamw(lambda t: rate[t], weight_decay=0.1),
            "wide": optax.adamw(lambda t: 2 * rate[t], weight_decay=0.2),
        },
        {"narrow": "narrow", "wide": "wide"},
    )
    for a, b in zip(*(jax.tree.leaves(train(o)) for o in (mine, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_batch_weight_multiplies_the_gradient():
    rate, weight = jnp.full((STEPS, 1), 0.1), jnp.linspace(0.5, 2, STEPS)[:, None]
    weighted = scheduled(lambda s: optax.sgd(s["rate"]), {"rate": rate, "batch_weight": weight})
    same = scheduled(lambda s: optax.sgd(s["rate"]), {"rate": rate * weight})
    np.testing.assert_allclose(train(weighted)["narrow"], train(same)["narrow"], rtol=1e-12)


def test_its_hypergradient_is_that_of_finite_differences():
    def optimizer(h):
        return scheduled(sgd, h, ("narrow", "wide"), lambda name: name)

    h = {"learning_rate": jnp.full((STEPS, 2), 0.1), "momentum": jnp.full((STEPS, 2), 0.5)}
    estimator = Unrolled(optimizer, STEPS)
    state = estimator.init(PROBLEM, START, h, None)
    grad = estimator.hypergradient(PROBLEM, state, h, None, None).grad
    for name, at in (("learning_rate", (3, 1)), ("momentum", (5, 0))):
        up, down = (
            distance(train(optimizer(h | {name: h[name].at[at].add(step)})), None, None)
            for step in (1e-5, -1e-5)
        )
        assert grad[name][at] == pytest.approx(float(up - down) / 2e-5, rel=1e-6)


@pytest.fixture(scope="module")
def learned():
    return learn_schedules(
        PROBLEM,
        START,
        None,
        None,
        None,
        optimizer=sgd,
        start={"learning_rate": optax.cosine_decay_schedule(0.2, STEPS), "momentum": 0.3},
        steps=STEPS,
        iterations=30,
        knots=4,
        group_of=lambda name: name,
    )


def test_each_group_gets_the_rates_of_its_curvature(learned):
    start = train(optax.sgd(optax.cosine_decay_schedule(0.2, STEPS), momentum=0.3))
    assert learned.losses[0] == pytest.approx(float(distance(start, None, None)), rel=1e-3)
    assert learned.value < 0.2 * learned.losses[0]
    assert learned.value == min(learned.losses)
    narrow, wide = learned.values["learning_rate"].mean(axis=0)
    assert wide > 5 * narrow
    assert np.all((learned.values["momentum"] > 0) & (learned.values["momentum"] < 1))


def test_the_schedules_are_used_again(learned):
    again = LearnedSchedules.from_dict(json.loads(json.dumps(learned.to_dict())))
    w = train(again.optimizer(sgd, lambda name: name))
    assert distance(w, None, None) == pytest.approx(learned.value, rel=1e-6)
    rate = learned.schedule("learning_rate", "wide")
    np.testing.assert_allclose(
        jax.vmap(rate)(jnp.arange(STEPS)), learned.values["learning_rate"][:, 1]
    )
    assert rate(STEPS + 5) == rate(STEPS - 1)
    printed = str(learned)
    assert "learning_rate [wide]" in printed
    assert len(printed.splitlines()) == 1 + 2 * 2
    # One alone is printed as it stands among the others.
    assert [line.split() for line in str(rate).splitlines()] == [
        line.split() for line in printed.splitlines() if "step" in line or "rate [wide]" in line
    ]
    longer = learned.stretched(2 * STEPS)
    assert longer.steps == 2 * STEPS
    assert longer.values["momentum"][-1, 0] == learned.values["momentum"][-1, 0]


def learn(**change):
    given = {"optimizer": sgd, "start": {"learning_rate": 0.1, "momentum": 0.5}, "steps": 4}
    return learn_schedules(PROBLEM, START, None, None, None, **given | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": {}}, "start: expected at least one setting"),
        ({"start": {"learning_rate": np.ones(3)}}, r"'learning_rate': expected a number, an optax"),
        ({"start": {"learning_rate": -0.1}}, "'learning_rate' on the scale 'log'"),
        ({"start": {"learning_rate": 0.1, "momentum": 1.2}}, "'momentum' on the scale 'logit'"),
        ({"scales": {"rate": "log"}}, r"received \['rate'\]"),
        ({"scales": {"momentum": "cubic"}}, '"log", "logit" or "linear"'),
        ({"knots": 0}, "knots: expected a positive"),
        ({"steps": 2.5}, "steps: expected a positive"),
        ({"group_of": lambda name: 3}, "group_of: expected a name for 'narrow'"),
        ({"optimizer": lambda s: 3}, "returns an optax.GradientTransformation"),
        # The sign of a running mean has no derivative in the momentum.
        (
            {"optimizer": lambda s: optax.lion(s["learning_rate"], b1=s["momentum"])},
            "momentum",
        ),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        learn(**change)


def test_names_that_there_are_not(learned):
    with pytest.raises(ValueError, match="expected one of"):
        learned.schedule("rate")
    with pytest.raises(ValueError, match="group: expected one of"):
        learned.schedule("momentum")
    with pytest.raises(ValueError, match="steps: expected a positive"):
        learned.stretched(0)
