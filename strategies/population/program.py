"""What a population compiles: the user's three functions for all members at once."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from strategies.population.memory import peak, tree_size
from strategies.population.rows import from_host
from strategies.population.training import Arrays, PyTree, Training, key_shape, member_keys
from strategies.space import Point


class Reached(NamedTuple):
    """Where all lanes are after an advance: new states, and what was seen there.

    - `values`: of `evaluate`, shape `(lanes,)`.
    - `metrics`: of each lane's last step.
    - `gradients`: paths to derivatives of the value, empty without a horizon.
    """

    states: PyTree
    values: Any
    metrics: PyTree
    gradients: dict[str, Any]


class Program:
    """One compiled program for configurations whose shapes agree, with a lane for each member.

    **Arguments:**

    - `training`: what one member does.
    - `lanes`: how many members it holds.
    - `horizon`: steps of the look ahead whose end is differentiated; 0 for no derivatives.
    - `devices`: share the lanes, if there is more than one.

    **Raises:** `ValueError` for functions that do not fit together, naming what to change.
    """

    def __init__(
        self, training: Training, lanes: int, horizon: int, devices: Sequence[jax.Device]
    ) -> None:
        self._training, self.lanes, self._horizon = training, lanes, horizon
        self._lead: Any = None
        if len(devices) > 1:
            mesh = jax.sharding.Mesh(np.array(devices), ("member",))
            self._lead = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("member"))
        #: How often the user's `step` was traced for it: once, whatever was trained.
        self.traces = 0
        self._shape = training.state_shape()
        self._begin = self._jit(jax.vmap(training.begin))
        self._merge = self._jit(_merged)
        self._gather = self._jit(_rows)
        self._put = self._jit(_with_row)
        self._take = jax.jit(_rows)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        self._traced = jax.jit(self._advance, donate_argnums=0).trace(
            self._led(self._shape),
            self._led(training.inputs()),
            *map(self._led, (key_shape(), count, count)),
            count,
        )
        whole = self._traced.jaxpr
        #: Bytes of the data that all members read, as predicted.
        self.shared = tree_size([data for data in whole.consts if hasattr(data, "dtype")])
        #: Bytes for each member, as predicted.
        self.per_member = peak(whole.jaxpr) / lanes  # the states are in it, as the loop's result

    # Calls

    def arrays(self, points: Sequence[Point]) -> dict[str, Any]:
        """The configurations of all lanes as arrays with a leading axis, by path."""
        types = self._training.types.items()
        return self._placed({p: np.array([one.flat[p] for one in points], t) for p, t in types})

    def keys(self, seed: int, numbers: np.ndarray) -> jax.Array:
        """The keys of the members in all lanes; the seed is an input, too."""
        return self._placed(member_keys(seed, numbers))

    def begin(self, config: Arrays, keys: jax.Array) -> PyTree:
        """Initial states for all lanes."""
        return self._begin(config, keys)

    def merge(self, states: PyTree, others: PyTree, where: np.ndarray) -> PyTree:
        """`states`, with the lanes `where` taken from `others`."""
        return self._merge(states, others, self._placed(where))

    def gather(self, states: PyTree, source: np.ndarray) -> PyTree:
        """Lane `i` becomes what lane `source[i]` was."""
        return self._gather(states, source.astype(np.int32))

    def take(self, states: PyTree, lane: int) -> PyTree:
        """The state in one lane."""
        return self._take(states, np.int32(lane))

    def put(self, states: PyTree, lane: int, leaves: Sequence[np.ndarray]) -> PyTree:
        """Fill one lane with what `rows.to_host` stored."""
        return self._put(states, np.int32(lane), self.row(leaves, states))

    def row(self, leaves: Sequence[np.ndarray], states: PyTree) -> PyTree:
        """The state of one member that `rows.to_host` stored; `states` are any."""
        return from_host(leaves, self._shape, states)

    def restore(self, leaves: Sequence[np.ndarray], states: PyTree) -> PyTree:
        """The states of all lanes that `rows.to_host` stored; `states` are any."""
        return self._placed(from_host(leaves, self._led(self._shape), states))

    def advance(
        self,
        states: PyTree,
        config: Arrays,
        keys: jax.Array,
        ages: np.ndarray,
        until: np.ndarray,
        steps: int,
    ) -> Reached:
        """Train every lane for `steps`, none beyond `until`, evaluate all; uses `states` up."""
        lanes = (ages.astype(np.int32), until.astype(np.int32))
        return self.compiled(states, config, keys, *self._placed(lanes), np.int32(steps))

    @functools.cached_property
    def compiled(self) -> Any:
        """The program, compiled when it is first needed and never again."""
        with warnings.catch_warnings():
            # Where a platform cannot reuse the memory of the states.
            warnings.filterwarnings("ignore", message="Some donated buffers")
            return self._traced.lower().compile()

    # What is traced

    def _advance(
        self, states: PyTree, config: Arrays, keys: Any, ages: Any, until: Any, steps: Any
    ) -> Reached:
        self.traces += 1
        training = self._training
        seen = jax.eval_shape(jax.vmap(training.step), states, config, keys, ages)[1]
        metrics = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), seen)

        def move(old: Any, config: Arrays, key: Any, age: Any, end: Any) -> Any:
            # A lane that has arrived is frozen.
            new = training.step(old[0], config, key, age)
            return jax.tree.map(lambda a, b: jnp.where(age < end, a, b), new, old)

        def body(count: Any, old: Any) -> Any:
            return jax.vmap(move)(old, config, keys, ages + count, until)

        # The number of steps is traced, too: rungs of all lengths are one program.
        states, metrics = jax.lax.fori_loop(0, steps, body, (states, metrics))
        gradients = {}
        if self._horizon:
            slope = jax.grad(functools.partial(training.ahead, horizon=self._horizon))
            tuned = {path: config[path] for path in training.tuned}
            ends = jnp.minimum(ages + steps, until)
            gradients = jax.vmap(slope)(tuned, states, config, keys, ends)
        return Reached(states, jax.vmap(training.value)(states, config), metrics, gradients)

    def _jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(function, out_shardings=self._lead)

    def _led(self, tree: PyTree) -> PyTree:
        """Shapes of all lanes from those of one."""

        def led(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.lanes, *leaf.shape), leaf.dtype, sharding=self._lead)

        return jax.tree.map(led, tree)

    def _placed(self, tree: Any) -> Any:
        return jax.device_put(tree, self._lead)


def _rows(states: PyTree, index: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], states)


def _with_row(states: PyTree, lane: Any, row: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, one: leaf.at[lane].set(one), states, row)


def _merged(states: PyTree, others: PyTree, where: Any) -> PyTree:
    def pick(where: Any, a: PyTree, b: PyTree) -> PyTree:
        return jax.tree.map(functools.partial(jnp.where, where), a, b)

    return jax.vmap(pick)(where, others, states)
