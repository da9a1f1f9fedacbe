"""One hypergradient of many trainings: the mean over a set of instances."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.estimator import Estimator, FitInfo, Hypergradient, HypergradientInfo
from hypergrad.expected import require_positive
from hypergrad.linear import vector
from hypergrad.outcome import Outcome, worst
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem
from hypergrad.restricted_estimator import RestrictedEstimator, begun, differentiated, fitted


class InstancesProblem(BilevelProblem):
    """A problem on many instances: params and batches have one more leading axis, over them.

    Its losses are those of `one`, averaged. `OverInstances` trains each instance by itself; the
    losses here are for whoever evaluates them all: `hypergrad.outer.run` and its held-out data.

    **Arguments:**

    - `one`: the problem of one instance. Take the logarithm of a loss whose size differs from
      instance to instance, or the mean is that of the largest.
    """

    one: BilevelProblem = eqx.field(default=None)

    def __init__(self, one: BilevelProblem) -> None:
        if not isinstance(one, BilevelProblem) or one.inner is None:
            kind = type(one).__name__
            raise ValueError(
                f"InstancesProblem: expected a BilevelProblem with an inner loss, received a {kind}"
            )

        def mean_of(name: str) -> Any:
            def loss(params: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> Any:
                def of(params: PyTree, batch: PyTree) -> Any:
                    return getattr(one, name)(params, hparams, batch, *key)

                value, aux = eqx.filter_vmap(of)(params, batch)
                return (jnp.mean(value), aux) if one.has_aux else jnp.mean(value)

            return loss

        self.one = one
        self.inner, self.outer = mean_of("inner_loss"), mean_of("outer_loss")
        self.optimality, self.has_aux = None, one.has_aux
        self.stochastic, self.biased = one.stochastic, one.biased


class InstancesState(eqx.Module):
    """The states of all instances, stacked.

    - `lost`: instances whose last hypergradient was not finite and was left out.
    - `clipped`: instances whose last hypergradient was shortened.
    """

    all: Any
    lost: Int[Array, ""]
    clipped: Int[Array, ""]

    @property
    def params(self) -> PyTree:
        """The inner points, stacked."""
        return self.all.params


class OverInstances(RestrictedEstimator):
    """The mean of an estimator's hypergradients over instances, each trained by itself.

    For an `InstancesProblem`: `params`, `inner_batch` and `outer_batch` have a leading axis over
    instances, of one length. All are run at once, with the memory of all.

    A training that diverges has no gradient: it is left out of the mean, counted in `state.lost`,
    and enters `value` with the largest loss of the others. Where every instance is lost,
    `info.outcome` says so. The derivative of a training at the edge of stability is as large as it
    is useless, and `clip` keeps one from deciding for all: the direction is then that of no loss,
    and `info.error` is not known.

    `value` is the mean, `aux` and `state` are those of all instances, `info` the worst of each;
    that of `fit` is the worst residual, and all steps.

    **Arguments:**

    - `estimator`: for one instance; any.
    - `clip`: the most that the norm of one instance's hypergradient may be; traced. Default: any.
    """

    state_type: ClassVar[type] = InstancesState
    estimator: Estimator
    clip: float | Scalar | None = None

    def __check_init__(self) -> None:
        require_positive("OverInstances", "clip", self.clip)

    def of_one_draw(self, problem: BilevelProblem) -> bool:
        """See `Estimator.of_one_draw`."""
        return self.estimator.of_one_draw(problem)

    def _init(self, given: RestrictedProblem) -> InstancesState:
        states = _mapped(given, lambda one, _: begun(self.estimator, one), None)
        nothing = jnp.zeros((), jnp.int32)
        return InstancesState(states, nothing, nothing)

    def _fit(
        self, given: RestrictedProblem, state: InstancesState
    ) -> tuple[InstancesState, FitInfo]:
        states, infos = _mapped(given, lambda one, own: fitted(self.estimator, one, own), state.all)
        info = FitInfo(jnp.max(infos.residual), jnp.sum(infos.iterations))
        return InstancesState(states, state.lost, state.clipped), info

    def _hypergradient(self, given: RestrictedProblem, state: InstancesState) -> Hypergradient:
        out = _mapped(given, lambda one, own: differentiated(self.estimator, one, own), state.all)
        infos: HypergradientInfo = out.info
        sizes = jax.vmap(vector.norm)(out.grad)
        intact = jnp.isfinite(out.value) & jnp.isfinite(sizes) & ~infos.breakdown
        kept = jnp.maximum(jnp.sum(intact), 1)
        weights, clipped = jnp.where(intact, 1 / kept, 0).astype(sizes.dtype), intact & False
        if self.clip is not None:
            clipped = intact & (sizes > self.clip)
            weights = jnp.where(clipped, weights * self.clip / sizes, weights)
        grad = jax.tree.map(
            lambda g: jnp.tensordot(weights, _zeroed(intact, g), 1).astype(g.dtype), out.grad
        )
        largest = jnp.max(jnp.where(intact, out.value, -jnp.inf))
        value = jnp.mean(jnp.where(intact, out.value, largest))
        lost = jnp.sum(~intact).astype(jnp.int32)
        whole = (lost == 0) & ~jnp.any(clipped)
        outcomes = jax.tree.map(
            lambda of, solved: jnp.where(intact, of, solved), infos.outcome, Outcome.solved
        )
        info = HypergradientInfo(
            inner_residual=jnp.max(infos.inner_residual),
            inner_iterations=jnp.sum(infos.inner_iterations),
            linear_residual=jnp.where(whole, jnp.max(infos.linear_residual), jnp.nan),
            iterations=jnp.sum(infos.iterations),
            outcome=Outcome.where(jnp.any(intact), worst(outcomes), Outcome.not_finite),
            error=jnp.where(whole, jnp.mean(infos.error), jnp.nan),
            error_calls=jnp.sum(infos.error_calls),
        )
        after = InstancesState(out.state, lost, jnp.sum(clipped).astype(jnp.int32))
        return Hypergradient(value, grad, after, info, out.aux)


def instances(**trees: PyTree) -> int:
    """How many instances there are.

    **Raises:** `ValueError` naming a leaf whose leading axis is of another length.
    """
    count, known = 0, ""
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not eqx.is_array(leaf):
                continue
            where = f"{name}{jax.tree_util.keystr(path)}"
            received = leaf.shape[0] if leaf.ndim else None
            count, known = (count, known) if known else (received or 0, where)
            if not received or received != count:
                raise ValueError(
                    f"{where}: expected a leading axis over instances of length "
                    f"{count or 'at least 1'} (as {known} has), received shape {leaf.shape}."
                )
    if not known:
        raise ValueError("OverInstances: expected arrays with a leading axis over instances.")
    return count


def _one(problem: BilevelProblem) -> BilevelProblem:
    if not isinstance(problem, InstancesProblem):
        raise ValueError(
            "OverInstances: expected an InstancesProblem (`InstancesProblem(problem)`), received a "
            f"{type(problem).__name__}."
        )
    return problem.one


def _mapped(given: RestrictedProblem, verb: Callable, states: PyTree) -> Any:
    """`verb` of each instance's problem and state, all at once; a key of its own for each."""
    problem, params, _, inner, outer, key = given.arguments
    one = replace(given, problem=_one(problem))
    count = instances(params=params, inner_batch=inner, outer_batch=outer)
    keys = None if key is None else jax.random.split(key, count)

    def of(own: Any, params: PyTree, inner: PyTree, outer: PyTree, key: Array | None) -> Any:
        return verb(replace(one, params=params, inner_batch=inner, outer_batch=outer, key=key), own)

    return eqx.filter_vmap(of)(states, params, inner, outer, keys)


def _zeroed(intact: Array, leaf: Array) -> Array:
    return jnp.where(intact.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)
