"""A loss in PyTorch gives what its twin in JAX gives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import (
    CG,
    BilevelProblem,
    ForwardUnrolled,
    ImplicitDifferentiation,
    Newton,
    Unrolled,
    from_torch,
)

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
PARAMS = {"a": RNG.normal(size=(5, 3)), "b": RNG.normal(size=(3, 3))}
HPARAMS = {"a": np.asarray(-3.0), "b": np.full(3, -2.0)}
TRAIN, VALID = ((RNG.normal(size=(n, 5)), RNG.integers(0, 3, n).astype(np.int32)) for n in (20, 15))


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def outer_in_torch(w, h, batch):
    x, y = batch
    return torch.nn.functional.cross_entropy(torch.tanh(x @ w["a"]) @ w["b"], y)


def inner_in_torch(w, h, batch):
    decay = 0.5 * sum((h[k].exp() * w[k] ** 2).sum() for k in w)
    return outer_in_torch(w, h, batch) + decay


def outer(w, h, batch):
    x, y = batch
    logits = jnp.tanh(x @ w["a"]) @ w["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def inner(w, h, batch):
    return outer(w, h, batch) + 0.5 * sum((jnp.exp(h[k]) * w[k] ** 2).sum() for k in w)


def arguments(batch=TRAIN):
    return jax.tree.map(jnp.asarray, (PARAMS, HPARAMS, batch))


def gap(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)


def third(f):
    return jax.jacfwd(jax.jacrev(jax.jacrev(f, argnums=1), argnums=1), argnums=1)


@pytest.mark.parametrize(
    "derivative",
    [
        lambda f: f,
        lambda f: jax.grad(f, argnums=(0, 1)),
        lambda f: jax.jacrev(jax.grad(f), argnums=1),
        lambda f: jax.jacfwd(jax.grad(f), argnums=1),
        third,
    ],
    ids=["value", "gradient", "reverse over reverse", "forward over reverse", "third"],
)
def test_derivatives_are_those_of_the_twin(derivative):
    ours = jax.jit(derivative(from_torch(inner_in_torch)))(*arguments())
    assert gap(ours, derivative(inner)(*arguments())) < 1e-12


def test_without_jit_it_runs_at_once():
    loss = from_torch(inner_in_torch)
    assert gap(jax.grad(loss)(*arguments()), jax.grad(inner)(*arguments())) < 1e-12


@pytest.mark.parametrize(
    "estimator",
    [
        ImplicitDifferentiation(Newton(), CG(tol=1e-12, max_steps=200)),
        Unrolled(optax.adam(0.05), 10),
        ForwardUnrolled(optax.sgd(0.05), 10),
    ],
    ids=lambda e: type(e).__name__,
)
def test_hypergradients_are_those_of_the_twin(estimator):
    def found(*losses):
        problem = BilevelProblem(*losses)

        @jax.jit
        def run(w, h, train, valid):
            state, _ = estimator.fit(problem, estimator.init(problem, w, h, train), h, train)
            return estimator.hypergradient(problem, state, h, train, valid)

        out = run(*arguments(), jax.tree.map(jnp.asarray, VALID))
        return out.value, out.grad, out.info.error

    ours, twin = found(*map(from_torch, (inner_in_torch, outer_in_torch))), found(inner, outer)
    assert gap(ours[:2], twin[:2]) < 1e-9
    assert bool(jnp.isfinite(ours[2])) == bool(jnp.isfinite(twin[2]))


def test_types_are_kept_and_integers_are_those_of_torch():
    seen = {}

    def loss(w, h, batch):
        seen.update(w=w["w"].dtype, h=h.dtype, y=batch.dtype)
        return (w["w"].double() ** 2).sum() * h + batch.sum()

    w, h, y = jnp.ones(3, jnp.float32), jnp.asarray(2.0), jnp.arange(3, dtype=jnp.int32)
    grad = jax.grad(from_torch(loss), argnums=(0, 1))({"w": w}, h, y)
    assert seen == {"w": torch.float32, "h": torch.float64, "y": torch.int64}
    assert grad[0]["w"].dtype == jnp.float32
    assert gap(grad, ({"w": 4 * w}, jnp.asarray(3.0))) == 0


def test_vmap_runs_it_one_by_one():
    loss = from_torch(lambda w, h, batch: (h * w**2).sum())
    w, h = jnp.arange(6.0).reshape(2, 3), jnp.asarray(2.0)
    assert gap(jax.vmap(jax.grad(loss), (0, None))(w, h), 4 * w) == 0


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda w, h, batch: w, r"expected a scalar tensor, received torch.Size\(\[2\]\)"),
        (lambda w, h, batch: 1.0, "expected a scalar tensor, received float"),
        (lambda w, h, batch: (w + torch.ones(3)).sum(), "must match the size"),
    ],
)
def test_errors_of_the_loss_are_told(loss, said):
    with pytest.raises(Exception, match=said):
        jax.block_until_ready(jax.jit(from_torch(loss))(jnp.ones(2), jnp.ones((2, 2))))


def test_what_it_cannot_take_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'loss': expected a function"):
        from_torch(3)
    loss = from_torch(lambda w, h, batch: w.sum() * batch.sum())
    with pytest.raises(ValueError, match=r"params\['w'\]: expected .*, received bfloat16"):
        loss({"w": jnp.ones(2, jnp.bfloat16)}, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"hparams: expected .*, received str"):
        loss(jnp.ones(2), "tanh", 1.0)
    with pytest.raises(ValueError, match=r"batch: expected no derivative"):
        jax.grad(loss, argnums=2)(jnp.ones(2), 1.0, 1.0)


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("hypergrad.torch_loss.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install torch"):
        from_torch(inner_in_torch)
