"""Policies of the state of training: their hypergradients, instances, and how they are judged."""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import (
    BilevelProblem,
    ForwardUnrolled,
    OnlineUnrolled,
    Outcome,
    TruncatedUnrolled,
    Unrolled,
    hypergradient,
    recommend,
)
from hypergrad.outer import Alternating, run
from hypergrad.policy import (
    Features,
    InstancesProblem,
    LinearPolicy,
    OverInstances,
    PolicyStep,
    Range,
    TrainingFeatures,
    Unseen,
    judge,
)

STEPS, COUNT = 6, 3


def loss(params, theta, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2) + 1e-3


ONE = BilevelProblem(loss, lambda p, theta, batch: jnp.log(loss(p, theta, batch)))
PROBLEM = InstancesProblem(ONE)
POLICY = LinearPolicy({"rate": Range(1e-3, 1.0, 0.1, log=True), "momentum": Range(0.0, 0.99, 0.5)})


def sgd(settings):
    return optax.chain(optax.trace(settings["momentum"]), optax.scale(-settings["rate"]))


STEP = PolicyStep(sgd, POLICY, STEPS)
EACH = Unrolled(STEP, STEPS)


@pytest.fixture(scope="module")
def case():
    """Params, policy parameters, training and validation data of three instances."""
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(COUNT, 2, 3))),
        "v": jnp.asarray(rng.normal(size=(COUNT, 3))),
    }
    theta = jax.tree.map(lambda w: w + 0.2 * jnp.asarray(rng.normal(size=w.shape)), POLICY.init(5))
    data = [
        (jnp.asarray(rng.normal(size=(COUNT, 8, 2))), jnp.asarray(rng.normal(size=(COUNT, 8))))
        for _ in range(2)
    ]
    return params, theta, *data


def first(tree):
    return jax.tree.map(lambda a: a[0], tree)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.fixture(scope="module")
def exact(case):
    """The hypergradient of the first instance by central differences of judged trainings."""
    params, theta, inner, outer = case
    values, unflatten = jax.flatten_util.ravel_pytree(theta)

    def value(at):
        return judge(ONE, STEP, params, unflatten(at), inner, outer).values[0]

    step = 1e-5
    columns = step * np.eye(len(values))
    return np.array([(value(values + d) - value(values - d)) / (2 * step) for d in columns])


ESTIMATORS = {
    "reverse": EACH,
    "forward": ForwardUnrolled(STEP, STEPS),
    "truncated to all": TruncatedUnrolled(STEP, STEPS, STEPS),
    "online": OnlineUnrolled(STEP, STEPS),
}


@pytest.mark.parametrize(
    "name",
    # A truncation that cuts nothing is the reverse sweep in another loop.
    ["reverse", "forward", "online", pytest.param("truncated to all", marks=pytest.mark.slow)],
)
def test_every_unrolled_estimator_agrees_with_central_differences(case, exact, name):
    params, theta, inner, outer = case
    one = (first(params), theta, first(inner), first(outer))
    estimator = ESTIMATORS[name]
    if name == "online":

        @eqx.filter_jit
        def grad(params, theta, inner, outer):
            state = estimator.init(ONE, params, theta, inner)
            state, _ = estimator.fit(ONE, state, theta, inner)
            return estimator.hypergradient(ONE, state, theta, inner, outer)

        found = grad(*one)
    else:
        found = hypergradient(ONE, *one, estimator=estimator)
    np.testing.assert_allclose(flat(found.grad), exact, rtol=1e-6, atol=1e-8)


def instance(case, i):
    params, theta, inner, outer = case
    own = [jax.tree.map(lambda a: a[i], tree) for tree in (params, inner, outer)]
    return own[0], theta, *own[1:]


@pytest.fixture(scope="module")
def alone(case):
    """The hypergradient of each instance by itself."""
    return [hypergradient(ONE, *instance(case, i), estimator=EACH) for i in range(COUNT)]


def over(clip):
    """The mean; a clip that is an array is no new program."""
    return OverInstances(EACH, clip=jnp.asarray(clip))


def test_over_instances_is_the_mean_of_each_by_itself(case, alone):
    found = hypergradient(PROBLEM, *case, estimator=over(1e9))
    np.testing.assert_allclose(found.value, np.mean([a.value for a in alone]), rtol=1e-12)
    mean = np.mean([flat(a.grad) for a in alone], axis=0)
    np.testing.assert_allclose(flat(found.grad), mean, rtol=1e-10)
    assert int(found.state.lost) == int(found.state.clipped) == 0
    assert float(found.info.error) < 1e-8


def test_a_lost_instance_is_left_out_and_counted(case, alone):
    params, theta, inner, outer = case
    broken = (inner[0].at[1].set(jnp.nan), inner[1])
    found = hypergradient(PROBLEM, params, theta, broken, outer, estimator=over(1e9))
    assert int(found.state.lost) == 1
    rest = np.mean([flat(alone[i].grad) for i in range(COUNT) if i != 1], axis=0)
    np.testing.assert_allclose(flat(found.grad), rest, rtol=1e-10)
    assert np.isfinite(found.value)
    assert np.isnan(found.info.error)
    lost = (inner[0] * jnp.nan, inner[1])
    with pytest.warns(UserWarning, match="not finite"):
        found = hypergradient(PROBLEM, params, theta, lost, outer, estimator=over(1e9))
    assert bool(found.info.outcome == Outcome.not_finite)
    assert int(found.state.lost) == COUNT


@pytest.mark.filterwarnings("ignore:the inner problem or the linear system")
def test_no_instance_decides_for_all_where_gradients_are_clipped(case):
    found = hypergradient(PROBLEM, *case, estimator=over(1e-3))
    assert np.linalg.norm(flat(found.grad)) <= 1e-3
    assert int(found.state.clipped) == COUNT


def test_a_run_of_the_driver_learns_and_is_resumed_bit_for_bit(case, tmp_path):
    params, theta, inner, outer = case
    loop = Alternating(OverInstances(EACH), optax.adam(0.05), start="cold")

    def tuned(steps, name):
        file = tmp_path / name
        return run(
            PROBLEM, loop, params, theta, inner, outer, steps=steps, every=2, checkpoint=file,
            holdout_data=outer, overtuning_margin=1.0,
        )  # fmt: skip

    whole = tuned(4, "whole")
    tuned(2, "halves")
    halves = tuned(4, "halves")
    assert (flat(whole.hparams) == flat(halves.hparams)).all()
    assert whole.history[-1]["value"] < whole.history[0]["value"]
    assert np.isfinite(whole.history[-1]["holdout"])


def test_judge_is_a_plain_training(case):
    params, theta, inner, outer = case
    constant = {name: jnp.zeros(5).at[0].set(w[0]) for name, w in theta.items()}
    judged = judge(ONE, STEP, params, constant, inner, outer, horizon=9)
    settings = POLICY(constant, jnp.ones(5).at[1:].set(0))
    assert judged.settings["rate"].shape == judged.losses.shape == (COUNT, 9)
    np.testing.assert_allclose(judged.settings["rate"], float(settings["rate"]))
    w, optimizer = first(params), sgd(settings)
    state = optimizer.init(w)

    @jax.jit
    def trained(w, state):
        update, state = optimizer.update(jax.grad(loss)(w, None, first(inner)), state)
        return optax.apply_updates(w, update), state

    for _ in range(9):
        w, state = trained(w, state)
    np.testing.assert_allclose(judged.values[0], ONE.outer(w, None, first(outer)), rtol=1e-10)
    assert judged.failures == {}
    mean, error = judged.excess(judge(ONE, STEP, params, theta, inner, outer, horizon=9))
    assert np.isfinite([mean, error, judged.error]).all()


def test_features_are_what_they_say():
    described = TrainingFeatures(decay=0.5)
    features = jax.jit(described.__call__)
    memory = described.init(jnp.zeros(2))
    up, right = jnp.asarray([0.0, 2.0]), jnp.asarray([1.0, 0.0])
    seen, memory = features(memory, jnp.asarray(0.0), jnp.asarray(4.0), up)
    np.testing.assert_allclose(seen, [1, 0, np.log10(2), 0, 0], atol=1e-12)
    seen, memory = features(memory, jnp.asarray(0.5), jnp.asarray(1.0), up)
    np.testing.assert_allclose(seen, [1, 0.5, np.log10(2), np.log10(0.25), 0.5], rtol=1e-12)
    seen, _ = features(memory, jnp.asarray(1.0), jnp.asarray(1.0), right)
    np.testing.assert_allclose(seen, [1, 1, np.log10(2) / 2, np.log10(0.25), 0.25], rtol=1e-12)
    # Trainings that end at zero have features, and derivatives, too.
    seen, _ = features(memory, jnp.asarray(1.0), jnp.asarray(0.0), 0 * up)
    assert np.isfinite(seen).all()
    slope = jax.jit(jax.grad(lambda g: described(memory, seen[0], seen[0], g)[0].sum()))(0 * up)
    assert np.isfinite(slope).all()


def test_a_range_starts_where_it_is_told_and_keeps_its_bounds():
    for one in (Range(1e-4, 10.0, 0.3, log=True), Range(0.0, 0.99, 0.9), Range(-1.0, 1.0)):
        middle = one(jnp.asarray(one.bias))
        np.testing.assert_allclose(middle, 0.0 if one.start is None else one.start)
        ends = one(jnp.asarray(-1e3)), one(jnp.asarray(1e3))
        assert one.low <= ends[0] <= ends[1] <= one.high * (1 + 1e-6)


class Unknown(Features):
    names = ("one", "meta")

    def init(self, params):
        return None

    def __call__(self, memory, time, loss, gradient):
        return jnp.stack([jnp.ones_like(loss), jnp.log(jnp.mean(loss) - 1e9)]), memory


def test_a_feature_that_is_nan_is_named_and_costs_nothing_else(case):
    params, _, inner, outer = case
    step = PolicyStep(sgd, POLICY, 4, Unknown())
    judged = judge(ONE, step, params, POLICY.init(2), inner, outer)
    assert set(judged.failures) == set(range(COUNT))
    text = "instance 1: feature 'meta' expected finite, received nan at step 0"
    assert judged.failures[1] == text
    assert judged.mean == np.inf


@pytest.mark.slow
def test_a_policy_that_sees_nan_has_a_gradient_of_zero(case):
    params, _, inner, outer = case
    estimator = OverInstances(Unrolled(PolicyStep(sgd, POLICY, 4, Unknown()), 4))
    with pytest.warns(UserWarning, match="not finite"):
        found = hypergradient(PROBLEM, params, POLICY.init(2), inner, outer, estimator=estimator)
    assert (flat(found.grad) == 0).all()


def test_a_training_that_diverges_is_named(case):
    params, theta, inner, outer = case
    broken = (inner[0], inner[1].at[2].set(1e300))
    judged = judge(ONE, STEP, params, theta, broken, outer)
    assert list(judged.failures) == [2]
    assert "diverged" in judged.failures[2]
    assert np.isfinite(judged.values[:2]).all()


def test_the_doctor_trains_each_instance(case):
    params, theta, inner, outer = case
    found = recommend(PROBLEM, params, theta, inner, outer, update=STEP, steps=STEPS)
    assert {route.family for route in found.routes} == {"instances"}
    assert isinstance(found.estimator, OverInstances)
    assert "PolicyStep" in str(recommend(PROBLEM, params, theta, inner, outer))


def test_bad_input_is_named(case):
    params, theta, inner, outer = case
    with pytest.raises(ValueError, match="horizon expected at least 1, received 0"):
        PolicyStep(sgd, POLICY, 0)
    with pytest.raises(ValueError, match="0 < low < high, received -1"):
        Range(-1.0, 1.0, log=True)
    with pytest.raises(ValueError, match="start expected between"):
        Range(0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="expected an InstancesProblem"):
        hypergradient(ONE, params, theta, inner, outer, estimator=OverInstances(EACH))
    short = jax.tree.map(lambda a: a[:2], outer)
    with pytest.raises(ValueError, match=r"outer_batch.* length 3 .*received shape \(2, 8"):
        judge(ONE, STEP, params, theta, inner, short)
    with pytest.raises(ValueError, match="must return an optax"):
        PolicyStep(lambda s: s, POLICY, 3).init(first(params), theta)
    with pytest.raises(ValueError, match="decay expected"):
        TrainingFeatures(1.0)


def test_unseen_keeps_what_did_best_elsewhere_and_stops(case, tmp_path):
    params, theta, inner, outer = case

    def made():
        return Unseen(ONE, STEP, params, inner, outer, patience=2, file=tmp_path / "unseen")

    guard = made()

    def told(step, hparams, guard=guard):
        return guard(SimpleNamespace(step=step, state=SimpleNamespace(visited=hparams)))

    better, worse = {name: w - 3 for name, w in theta.items()}, theta
    assert guard.judged(better).mean < guard.judged(worse).mean
    told_to_stop = [told(i, t) for i, t in enumerate([worse, better, worse, worse])]
    assert told_to_stop == [False, False, False, True]
    assert guard.hparams is better
    assert guard.history[1] == (1, guard.value)
    # Killed after the second step, whose checkpoint is of the first: what was best is known.
    again = made()
    stops = [told(i, t, again) for i, t in [(1, better), (2, worse), (3, worse)]]
    assert stops == [False, False, True]
    assert again.history == guard.history
    assert again.value == guard.value
    assert (flat(again.hparams) == flat(better)).all()
    other = made()
    assert not told(0, worse, other)  # a run that begins anew
    assert len(other.history) == 1
    assert (flat(other.hparams) == flat(worse)).all()
