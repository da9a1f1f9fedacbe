"""The alternating run and its schedule."""

import builtins
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.problem import BilevelProblem
from hypergrad.self_tuning import Hyperparameters, Positive, Schedule, SelfTuning, Tuner
from hypergrad.self_tuning.convert import to_self_tuning

PENALTY = Hyperparameters({"penalty": Positive(3.0)})


def squared(model, batch):
    return jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)


PROBLEM = BilevelProblem(
    lambda m, h, b: squared(m, b) + PENALTY.values(h)["penalty"] * m.squared_norm(),
    lambda m, h, b: squared(m, b),
)


@pytest.fixture(scope="module")
def setting():
    """A noise-free linear task, on which the best penalty is none."""
    key = jax.random.key(1)
    x = jax.random.normal(key, (64, 3))
    y = x @ jnp.array([1.0, -2.0, 0.5])
    layer = eqx.nn.Linear(3, "scalar", use_bias=False, key=key)
    model = to_self_tuning(layer, PENALTY.initial(), key=key)
    tuner = Tuner(
        PROBLEM,
        SelfTuning(optax.adam(0.02), groups=8),
        optimizer=optax.adam(0.1),
        train_steps=2,
        warmup=10,
    )
    train, valid = (x[:32], y[:32]), (x[32:], y[32:])
    state = tuner.init(model, PENALTY.initial(), train, key=key)
    return tuner, state, train, valid


def test_penalty_is_tuned_away_while_the_weights_are_trained(setting):
    tuner, state, train, valid = setting
    final, schedule = tuner.run(state, [(train, valid)] * 150, values=PENALTY.values)
    penalty = schedule.values["penalty"]
    assert penalty.shape == schedule.steps.shape == (71,)
    np.testing.assert_allclose(penalty[0], 3.0)
    assert penalty[-1] < 0.3
    assert np.array_equal(schedule.steps[:3], [0, 12, 14])
    assert schedule.steps[-1] == int(final.step) == 150
    assert squared(final.estimator.params, valid) < 0.5 * squared(state.estimator.params, valid)
    np.testing.assert_allclose(schedule.final["penalty"], PENALTY.values(final.hparams)["penalty"])


def test_warmup_leaves_hyperparameters_and_their_optimizer_untouched(setting):
    tuner, state, train, valid = setting
    warm, schedule = tuner.run(state, [(train, valid)] * 10)
    assert eqx.tree_equal(warm.hparams, state.hparams)
    assert eqx.tree_equal(warm.optimizer, state.optimizer)
    assert np.array_equal(schedule.steps, [0])


def test_a_run_continues_where_it_stopped(setting):
    tuner, state, train, valid = setting
    whole, schedule = tuner.run(state, [(train, valid)] * 16)
    part, first = tuner.run(state, [(train, valid)] * 13)
    part, second = tuner.run(part, [(train, valid)] * 3)
    assert eqx.tree_equal(whole, part)
    joined = [*first.steps, *second.steps[1:]]
    assert joined == schedule.steps.tolist()


def test_a_gradient_that_is_not_finite_is_not_followed(setting):
    tuner, state, train, valid = setting
    state = tuner.train(state, train)
    bad = (valid[0].at[0, 0].set(jnp.inf), valid[1])
    after, result = tuner.tune(state, train, bad)
    assert bool(result.info.breakdown)
    assert eqx.tree_equal(after.hparams, state.hparams)
    assert eqx.tree_equal(after.optimizer, state.optimizer)


def test_tuner_options(setting):
    tuner = setting[0]
    with pytest.raises(ValueError, match="train_steps: expected an integer >= 1, received 0"):
        Tuner(PROBLEM, tuner.estimator, train_steps=0)


SCHEDULE = Schedule([0, 10, 20], {"a": [0.0, 1.0, 3.0], "b": [[1, 2], [3, 4], [5, 6]]})


def test_schedule_as_data():
    assert SCHEDULE.at(5)["a"] == 0.5
    np.testing.assert_allclose(SCHEDULE.at(15)["b"], [4, 5])
    assert SCHEDULE.at(-3)["a"] == 0.0
    np.testing.assert_allclose(SCHEDULE.at(99)["b"], SCHEDULE.final["b"])
    again = Schedule.from_dict(json.loads(json.dumps(SCHEDULE.to_dict())))
    np.testing.assert_array_equal(again.values["b"], SCHEDULE.values["b"])


def test_schedule_as_plot(tmp_path):
    SCHEDULE.plot(tmp_path / "all.png")
    assert (tmp_path / "all.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match=r"unknown \['c'\], expected among \['a', 'b'\]"):
        SCHEDULE.plot(tmp_path / "none.png", names=["c"])


def test_plot_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "hypergrad-engine\[experiments\]"'):
        SCHEDULE.plot(tmp_path / "x.png")


def test_schedules_that_make_no_sense():
    with pytest.raises(ValueError, match="expected an increasing vector"):
        Schedule([0, 0], {"a": [1, 2]})
    with pytest.raises(ValueError, match=r"'a' has shape .*expected a leading axis of 2 steps"):
        Schedule([0, 1], {"a": [1, 2, 3]})
