"""The compiled programs of a run: its beginning, some steps, an evaluation."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hypergrad.compiled import strong
from hypergrad.outer import loops
from hypergrad.outer.base import RUNNING, OuterAlgorithm, OuterInfo, OuterState
from hypergrad.outer.batches import Sampler
from hypergrad.outer.result import Point
from hypergrad.problem import BilevelProblem
from hypergrad.recompilation import note_compilation


class Setting(eqx.Module):
    """What stays the same throughout a run."""

    problem: BilevelProblem
    algorithm: OuterAlgorithm
    sampler: Sampler
    inner_data: PyTree
    outer_data: PyTree
    key: Array


class Progressed(eqx.Module):
    """How far a run has come: everything that a checkpoint holds besides the history."""

    state: OuterState
    best: Point
    holdout_best: Point


@eqx.filter_jit
def begin(setting: Setting, params: PyTree, hparams: PyTree) -> Progressed:
    """Before the first step."""
    draw, noise = jax.random.split(setting.key)
    start = jnp.zeros((), jnp.int32)
    batches = setting.sampler(setting.inner_data, setting.outer_data, start, draw)
    problem = setting.problem
    state = setting.algorithm.init(problem, params, hparams, batches, noise)
    loss, _ = eqx.filter_eval_shape(problem.outer_loss, params, hparams, batches.outer, noise)
    worst = jnp.full((), jnp.inf, loss.dtype)
    nowhere = Point(jnp.zeros((), jnp.int32), worst, hparams, params)
    return strong(Progressed(state, nowhere, nowhere))


@eqx.filter_jit
def advance(setting: Setting, state: OuterState, count: int) -> tuple[OuterState, OuterInfo]:
    """`count` steps; none is taken after one that says stop."""
    data = (setting.inner_data, setting.outer_data)
    static = (setting.problem, setting.algorithm, setting.sampler, count)
    note_compilation("outer.run", static, (state, *data))
    draw, noise = jax.random.split(setting.key)

    def step(state: OuterState) -> tuple[OuterState, OuterInfo]:
        batches = setting.sampler(*data, state.step, draw)
        step_key = jax.random.fold_in(noise, state.step)
        state, info = setting.algorithm.step(setting.problem, state, batches, step_key)
        return strong(state), info

    if count == 1:
        return step(state)

    none = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), eqx.filter_eval_shape(lambda s: step(s)[1], state)
    )

    def guarded(carry: tuple, _: None) -> tuple[tuple, OuterInfo]:
        state, stop = carry
        running = stop == RUNNING
        state, info = loops.cond(running, lambda: step(state), lambda: (state, none))
        return (state, jnp.where(running, info.stop, stop)), info

    start = (state, jnp.asarray(RUNNING, jnp.int32))
    (state, _), infos = loops.scan(guarded, start, jnp.arange(count))
    return state, infos


@eqx.filter_jit
def evaluate(
    problem: BilevelProblem, params: PyTree, hparams: PyTree, data: PyTree, key: Array
) -> Array:
    """The loss that a run is judged by."""
    return problem.evaluation_loss(params, hparams, data, key)
