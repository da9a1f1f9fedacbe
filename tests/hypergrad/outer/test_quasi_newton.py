import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.inner import Newton
from hypergrad.linear.cg import CG
from hypergrad.outer import HOAG, Batches, Box, QuasiNewton
from hypergrad.problem import BilevelProblem

RNG = np.random.default_rng(0)
SIZE = 6
HESSIAN = np.diag(10.0 ** np.arange(SIZE)) + np.ones((SIZE, SIZE))
FREE = jnp.ones(SIZE, bool)
FAR = QuasiNewton(memory=4, reach=1e9)


def learnt(metric, count, hessian=HESSIAN):
    """What `count` random steps on the quadratic teach, and the pairs."""
    points = RNG.standard_normal((count + 1, SIZE))
    known = metric.init(jnp.zeros(SIZE))
    last, pairs = points[0], []
    known = metric.learn(known, jnp.zeros(SIZE), jnp.zeros(SIZE), jnp.asarray(hessian @ last))
    for point in points[1:]:
        step, change = point - last, hessian @ (point - last)
        gradient = jnp.asarray(hessian @ point)
        known = metric.learn(known, jnp.asarray(step), jnp.asarray(change), gradient)
        pairs.append((step, change))
        last = point
    return known, pairs


def bfgs(pairs, diagonal):
    """The inverse Hessian by the dense update (Nocedal & Wright, equation 6.17)."""
    inverse = np.diag(diagonal)
    for s, y in pairs:
        turn = np.eye(len(s)) - np.outer(s, y) / (s @ y)
        inverse = turn @ inverse @ turn.T + np.outer(s, s) / (s @ y)
    return inverse


@pytest.mark.parametrize("count", [0, 2, 4, 9])
def test_the_direction_is_that_of_the_dense_update(count):
    known, pairs = learnt(FAR, count)
    diagonal = 1 / np.maximum(np.sqrt(known.squares), 1e-3 * np.sqrt(known.squares).max())
    gradient = RNG.standard_normal(SIZE)
    expected = -bfgs(pairs[-4:], diagonal) @ gradient
    np.testing.assert_allclose(
        FAR.direction(known, jnp.asarray(gradient), FREE), expected, rtol=1e-9
    )


def test_what_is_not_free_is_as_if_it_were_not_there():
    known, pairs = learnt(FAR, 4)
    kept = np.array([0, 2, 3, 5])
    free = jnp.zeros(SIZE, bool).at[kept].set(True)
    gradient = RNG.standard_normal(SIZE)
    diagonal = 1 / np.maximum(np.sqrt(known.squares), 1e-3 * np.sqrt(known.squares).max())
    small = [(s[kept], y[kept]) for s, y in pairs]
    small = [(s, y) for s, y in small if s @ y > 0]
    direction = np.asarray(FAR.direction(known, jnp.asarray(gradient), free))
    np.testing.assert_allclose(
        direction[kept], -bfgs(small, diagonal[kept]) @ gradient[kept], rtol=1e-9
    )
    assert np.all(np.delete(direction, kept) == 0)


def test_the_first_step_is_a_unit_in_each_and_none_is_longer_than_the_reach():
    metric = QuasiNewton(reach=0.5)
    gradient = {"a": jnp.asarray([3.0, -2.0]), "b": jnp.asarray(1e-2)}
    nothing = jax.tree.map(jnp.zeros_like, gradient)
    known = metric.learn(metric.init(nothing), nothing, nothing, gradient)
    free = jax.tree.map(lambda leaf: jnp.ones_like(leaf, bool), gradient)
    long = QuasiNewton().direction(known, gradient, free)
    np.testing.assert_allclose(long["a"], [-1.0, 1.0])
    np.testing.assert_allclose(long["b"], -1.0)
    np.testing.assert_allclose(metric.direction(known, gradient, free)["a"], [-0.5, 0.5])


def _pairs(known):
    return known.steps, known.changes


def test_changes_that_mislead_leave_the_diagonal():
    known, _ = learnt(FAR, 3)
    wrong = eqx.tree_at(lambda k: k.changes, known, jnp.nan * known.changes)
    gradient = jnp.asarray(RNG.standard_normal(SIZE))
    backwards = eqx.tree_at(lambda k: k.changes, known, -known.changes)
    for odd in (wrong, backwards):
        direction = FAR.direction(odd, gradient, FREE)
        assert np.all(np.isfinite(direction))
        assert gradient @ direction < 0
    alone = QuasiNewton(memory=0, reach=1e9)
    diagonal = alone.direction(
        eqx.tree_at(_pairs, known, _pairs(alone.init(gradient))), gradient, FREE
    )
    np.testing.assert_allclose(FAR.direction(backwards, gradient, FREE), diagonal)


def test_a_negative_memory_is_refused():
    with pytest.raises(ValueError, match="memory: expected an integer >= 0, received -1"):
        QuasiNewton(memory=-1)


@pytest.fixture(scope="module")
def unequal():
    """Ridge regression whose features differ in scale by orders of magnitude."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((80, 12)) * 10.0 ** np.linspace(-1.5, 1.0, 12)
    y = x @ (rng.standard_normal(12) / np.sqrt(12)) + rng.standard_normal(80)
    parts = [(jnp.asarray(x[i::2]), jnp.asarray(y[i::2])) for i in range(2)]

    def outer(w, h, batch):
        return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)

    def inner(w, h, batch):
        return outer(w, h, batch) + 0.5 * jnp.sum(jnp.exp(h) * w**2)

    return BilevelProblem(inner, outer), parts


def visited(unequal, algorithm, count):
    problem, parts = unequal
    batches = Batches(*parts)
    state = algorithm.init(problem, jnp.zeros(12), jnp.zeros(12), batches)
    step, points = eqx.filter_jit(algorithm.step), []
    for _ in range(count):
        state, _ = step(problem, state, batches)
        points.append(state.visited)
    return points


def test_hoag_needs_a_fraction_of_the_steps_with_it(unequal):
    problem, (train, valid) = unequal
    estimator = ImplicitDifferentiation(Newton(), CG(), error_estimate=False)
    box = Box(-8.0, 4.0)

    def value(h):
        hessian = train[0].T @ train[0] / 40 + jnp.diag(jnp.exp(h))
        return problem.outer(jnp.linalg.solve(hessian, train[0].T @ train[1] / 40), h, valid)

    metric = visited(unequal, HOAG(estimator, metric=QuasiNewton(), constraint=box), 40)
    plain = visited(unequal, HOAG(estimator, constraint=box), 80)
    quasi, slow = [float(value(h)) for h in metric], [float(value(h)) for h in plain]
    assert min(quasi[:20]) < min(slow)
    pull = jax.grad(value)(metric[-1])
    np.testing.assert_allclose(box.project(metric[-1] - pull), metric[-1], atol=2e-3)


def test_a_bounded_direction_leads_down():
    """Ill-conditioned pairs make steps far beyond reach, whose clipped entries may lead up."""
    metric, turned = QuasiNewton(memory=4, reach=0.1), 0
    rotation = np.linalg.qr(RNG.standard_normal((SIZE, SIZE)))[0]
    hessian = rotation * 10.0 ** np.arange(SIZE) @ rotation.T
    for _ in range(50):
        known, pairs = learnt(metric, 4, hessian)
        gradient = 1e6 * RNG.standard_normal(SIZE)
        diagonal = 1 / np.maximum(np.sqrt(known.squares), 1e-3 * np.sqrt(known.squares).max())
        whole = bfgs(pairs, diagonal) @ gradient
        turned += gradient @ np.clip(whole, -0.1, 0.1) <= 0
        found = metric.direction(known, jnp.asarray(gradient), FREE)
        assert gradient @ np.asarray(found) < 0
        assert np.abs(found).max() <= 0.1
    assert turned


def test_a_direction_that_is_too_long_keeps_its_way_where_no_entry_stands_out():
    metric = QuasiNewton(memory=0, reach=0.1)
    even = jnp.asarray([3.0, -4.0, 3.5, -3.0, 4.0, 3.0])
    known = metric.init(even)
    known = eqx.tree_at(lambda k: k.squares, known, jnp.ones(SIZE))
    found = np.asarray(metric.direction(known, even, FREE))
    assert np.abs(found + 0.1 * even / np.sqrt(np.mean(even**2))).max() < 0.02
