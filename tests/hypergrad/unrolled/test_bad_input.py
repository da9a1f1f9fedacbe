"""What the unrolled estimators refuse, and in which words."""

import jax
import jax.numpy as jnp
import optax
import pytest

from hypergrad import BilevelProblem, hypergradient
from hypergrad.unrolled import (
    ForwardUnrolled,
    OnlineUnrolled,
    OptaxStep,
    StepFunction,
    TruncatedUnrolled,
    Unrolled,
)

PROBLEM = BilevelProblem(lambda w, h, b: jnp.sum((w - h["a"]) ** 2), lambda w, h, b: jnp.sum(w))
W, H = jnp.ones(2), {"a": jnp.asarray(0.5)}


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, jnp.asarray(3)])
@pytest.mark.parametrize("kind", [Unrolled, ForwardUnrolled, OnlineUnrolled])
def test_steps_is_a_positive_python_integer(kind, steps):
    with pytest.raises(ValueError, match="steps: expected a positive Python integer"):
        kind(optax.sgd(0.1), steps)


@pytest.mark.parametrize("window", [0, 11])
def test_the_window_lies_within_the_run(window):
    with pytest.raises(ValueError, match="window: expected"):
        TruncatedUnrolled(optax.sgd(0.1), 10, window)


@pytest.mark.parametrize("leaf", [7, jnp.asarray(7)])
def test_integers_are_refused_by_name(leaf):
    with pytest.raises(ValueError, match="Hyperparameter 'inner/count' is an integer"):
        hypergradient(
            PROBLEM, W, {**H, "inner": {"count": leaf}}, estimator=Unrolled(optax.sgd(0.1), 3)
        )


def test_batches_have_one_entry_per_step():
    with pytest.raises(ValueError, match=r"leaf 'y': expected a leading axis of length 3.*\(4, 2"):
        hypergradient(
            PROBLEM,
            W,
            H,
            {"x": jnp.ones((3, 5)), "y": jnp.ones((4, 2))},
            estimator=Unrolled(optax.sgd(0.1), 3, stacked=True),
        )


@pytest.mark.parametrize("kind", [Unrolled, ForwardUnrolled])
@pytest.mark.parametrize("hidden", [jnp.round, lambda x: 0.0 * (x > 0), lambda x: 0.0])
def test_no_effect_is_refused_by_name(kind, hidden):
    update = lambda h: optax.sgd(0.1 + hidden(h["rate"]))  # noqa: E731
    with pytest.raises(ValueError, match=f"{kind.__name__} cannot see hyperparameter 'rate'"):
        hypergradient(PROBLEM, W, {**H, "rate": jnp.asarray(0.1)}, estimator=kind(update, 3))


def test_an_optimizer_that_moves_by_signs_is_named():
    with pytest.raises(ValueError, match="training step applies sign, whose derivative is zero"):
        hypergradient(PROBLEM, W, H, estimator=Unrolled(optax.sign_sgd(0.1), 3))


def test_an_absolute_value_in_the_loss_is_no_fault_of_the_optimizer():
    problem = BilevelProblem(lambda w, h, b: jnp.sum(jnp.abs(w)), PROBLEM.outer)
    with pytest.raises(ValueError, match="cannot see hyperparameter 'a'") as found:
        hypergradient(problem, W, H, estimator=Unrolled(optax.sgd(0.1), 3))
    assert "signs" not in str(found.value)


def test_an_effect_through_the_state_alone_is_seen():
    # The hyperparameter moves the velocity first, and params one step later.
    def fn(w, velocity, h, batch):
        return w + velocity, 0.5 * velocity + h["a"]

    step = StepFunction(fn, lambda w, h: jnp.zeros(2))
    out = hypergradient(PROBLEM, W, H, estimator=Unrolled(step, 3))
    assert out.grad["a"] == pytest.approx(2 * (1 + 1.5))
    with pytest.raises(ValueError, match="cannot see hyperparameter 'a'"):
        hypergradient(PROBLEM, W, H, estimator=Unrolled(step, 1))


def test_only_the_outer_loss_reads_it():
    problem = BilevelProblem(lambda w, h, b: jnp.sum(w**2), lambda w, h, b: h["a"] * jnp.sum(w))
    out = hypergradient(problem, W, H, estimator=Unrolled(optax.sgd(0.1), 2))
    assert out.grad["a"] == pytest.approx(2 * 0.8**2)


def test_params_and_hparams_must_have_something_to_differentiate():
    estimator = Unrolled(optax.sgd(0.1), 2)
    with pytest.raises(ValueError, match="params: expected at least one"):
        hypergradient(PROBLEM, jnp.arange(3), H, estimator=estimator)
    with pytest.raises(ValueError, match="nothing to differentiate"):
        hypergradient(PROBLEM, W, {"a": True}, estimator=estimator)


def test_functions_of_the_wrong_kind():
    with pytest.raises(ValueError, match="Inner step: expected an optax optimizer"):
        Unrolled(0.1, 3)
    with pytest.raises(ValueError, match=r"an optax.GradientTransformation, received float"):
        hypergradient(PROBLEM, W, H, estimator=Unrolled(OptaxStep(lambda h: 0.1), 3))
    with pytest.raises(ValueError, match=r"expected \(params, state\), received"):
        hypergradient(PROBLEM, W, H, estimator=Unrolled(StepFunction(lambda w, s, h, b: w), 3))
    with pytest.raises(ValueError, match=r"keep structure and shapes.*\(2,\).*\(3,\)"):
        hypergradient(
            PROBLEM,
            W,
            H,
            estimator=Unrolled(StepFunction(lambda w, s, h, b: (jnp.ones(3), s)), 3),
        )
    with pytest.raises(ValueError, match="`initial` must return a pytree like params"):
        hypergradient(
            PROBLEM,
            W,
            H,
            estimator=Unrolled(optax.sgd(0.1), 3, initial=lambda p, h: jnp.ones(3)),
        )
    with pytest.raises(ValueError, match="step function is stochastic"):
        hypergradient(
            PROBLEM,
            W,
            H,
            estimator=Unrolled(StepFunction(lambda w, s, h, b, k: (w, s), stochastic=True), 3),
        )
    with pytest.raises(ValueError, match="excludes `initial`"):
        Unrolled(optax.sgd(0.1), 3, initial=lambda p, h: p, warm_start=True)


def test_too_little_memory_says_how_much_is_needed():
    with pytest.raises(
        ValueError, match=r"memory \(bytes\): expected a number, received the text '1 GB'"
    ):
        Unrolled(optax.sgd(0.1), 30, memory="1 GB")
    with pytest.raises(ValueError, match=r"TruncatedUnrolled: memory \(bytes\): expected"):
        TruncatedUnrolled(optax.sgd(0.1), 30, 3, memory="1 GB")
    with pytest.raises(ValueError, match="memory=10 bytes is too little to reverse 30 steps"):
        hypergradient(PROBLEM, W, H, estimator=Unrolled(optax.sgd(0.1), 30, memory=10))


def test_offloading_needs_a_jax_that_names_memories(monkeypatch):
    with pytest.raises(ValueError, match="Unrolled: offload: expected True or False"):
        Unrolled(optax.sgd(0.1), 3, offload="yes")
    monkeypatch.delattr(jax, "memory")
    with pytest.raises(ValueError, match=r"offload: expected a jax that has jax\.memory"):
        Unrolled(optax.sgd(0.1), 3, offload=True)
    assert not Unrolled(optax.sgd(0.1), 3).offload
