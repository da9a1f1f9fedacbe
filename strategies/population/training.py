"""What one member does: the user's functions, given keys and a configuration of arrays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from strategies.plain import plain
from strategies.space import Constant, Float, Logit, Point, SearchSpace
from strategies.space.choices import Listed

PyTree = Any
#: Traced configurations, by path.
Arrays = Mapping[str, Any]

#: What tracing raises where a shape or a branch depends on a traced value.
_SHAPE_ERRORS = (
    jax.errors.ConcretizationTypeError,
    IndexError,
    jax.errors.TracerArrayConversionError,
    TypeError,
)


@dataclass(frozen=True)
class Functions:
    """What the user writes; see `Population`."""

    init: Callable[..., PyTree]
    step: Callable[..., tuple[PyTree, PyTree]]
    evaluate: Callable[..., Any]
    batch: Callable[..., PyTree] | None = None


class Training:
    """One member's life, to be traced.

    It draws its randomness from a key of its own, see `member_keys`: `fold_in(key, 0)` is that of
    `init`, and `fold_in(key, t + 1)`, split in two, those of `batch` and `step` at step `t`. So
    what it does depends on its key and its configuration only, in any lane, at any time.

    **Arguments:**

    - `functions`: of the user.
    - `space`, `example`: the space, and one configuration of the bucket.
    - `buckets`: paths whose values are the same for the whole bucket; plain Python values.

    **Raises:** `ValueError` for a hyperparameter that can be no input of a program.
    """

    def __init__(
        self,
        functions: Functions,
        space: SearchSpace,
        example: Point,
        buckets: Sequence[str],
    ) -> None:
        self._functions, self._space, self._example = functions, space, example
        fixed = {p for p in example.flat if p in buckets or isinstance(space.domains[p], Constant)}
        self._fixed = {path: example.flat[path] for path in fixed}
        #: The type of each hyperparameter that is an input, by path.
        self.types = {path: _type_of(path, space) for path in example.flat if path not in fixed}
        #: The inputs that have derivatives.
        self.tuned = [
            path
            for path in self.types
            if isinstance(space.domains[path], Float | Logit) and space.domains[path].differentiable
        ]

    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of one configuration."""
        flat = self._example.flat
        return {p: jax.ShapeDtypeStruct(np.shape(flat[p]), t) for p, t in self.types.items()}

    def begin(self, config: Arrays, key: Any) -> PyTree:
        """The initial state of a member."""
        to_begin = jax.random.fold_in(key, 0)
        return _arrays("init", self._functions.init(to_begin, self._nested(config)))

    def step(self, state: PyTree, config: Arrays, key: Any, age: Any) -> tuple[PyTree, PyTree]:
        """The state after one more step, and its metrics."""
        nested = self._nested(config)
        to_draw, to_step = jax.random.split(jax.random.fold_in(key, age + 1))
        batch = self._functions.batch
        drawn = None if batch is None else batch(to_draw, nested)
        found = self._functions.step(state, nested, drawn, to_step)
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(
                f"'step': expected a pair of state and metrics, received {type(found).__name__}"
            )
        return _arrays("step", found[0]), _arrays("step", found[1])

    def value(self, state: PyTree, config: Arrays) -> Any:
        """What `evaluate` gives."""
        found = self._functions.evaluate(state, self._nested(config))
        if not jax.tree_util.all_leaves([found]):
            raise ValueError(
                f"'evaluate': expected a scalar of floating type, received {type(found).__name__}"
            )
        return jnp.asarray(found)

    def ahead(
        self, tuned: Arrays, state: PyTree, config: Arrays, key: Any, age: Any, horizon: int
    ) -> Any:
        """The value after `horizon` more steps, as a function of the tuned hyperparameters."""
        config = {**config, **tuned}

        def one(state: PyTree, count: Any) -> tuple[PyTree, None]:
            return self.step(state, config, key, age + count)[0], None

        return self.value(jax.lax.scan(one, state, jnp.arange(horizon))[0], config)

    def state_shape(self) -> PyTree:
        """Shapes of a member's state.

        **Raises:** `ValueError` for functions that do not fit together, naming what to change.
        """
        state, after, value = self._shapes(self.inputs())
        if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                "'evaluate': expected a scalar of floating type, received "
                f"{value.dtype}{value.shape}"
            )
        before, structure = jax.tree_util.tree_flatten_with_path(state)
        if str(structure) != str(jax.tree.structure(after)):
            raise ValueError(
                f"'step': expected the state's structure {structure}, "
                f"received {jax.tree.structure(after)}"
            )
        for (path, a), b in zip(before, jax.tree.leaves(after), strict=True):
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                raise ValueError(
                    f"'step': expected state{jax.tree_util.keystr(path)} to stay "
                    f"{a.dtype}{a.shape}, received {b.dtype}{b.shape}"
                )
        return state

    def _shapes(self, inputs: Arrays) -> tuple[PyTree, PyTree, Any]:
        try:
            return self._abstract(inputs, {})
        except _SHAPE_ERRORS as error:
            # What fails with plain values, too, fails for another reason.
            guilty = [path for path in inputs if not self._traceable(path)]
            if not guilty or not self._traceable(None):
                raise
            raise ValueError(
                f"{guilty[0]!r}: expected a hyperparameter that changes no shape and no branch, as "
                f"it is an input of the program; received one that does (all such: {guilty}). Name "
                "it in 'buckets' of a Population, for one program for each of its values, or "
                "mask: jnp.arange(largest) < config[...]"
            ) from error

    def _traceable(self, path: str | None) -> bool:
        """Whether a hyperparameter (or none) can be traced while all others are plain values."""
        flat = self._example.flat
        others = {
            p: np.asarray(flat[p]) if isinstance(flat[p], list) else flat[p]
            for p in self.types
            if p != path
        }
        try:
            self._abstract({} if path is None else {path: self.inputs()[path]}, others)
        except _SHAPE_ERRORS:
            return False
        return True

    def _abstract(self, traced: Arrays, plain_values: Arrays) -> tuple[PyTree, PyTree, Any]:
        """Shapes of a first state, of the next one, and of its value."""

        def life(inputs: Arrays, key: Any, age: Any) -> tuple[PyTree, PyTree, Any]:
            config = {**plain_values, **inputs}
            state = self.begin(config, key)
            return state, self.step(state, config, key, age)[0], self.value(state, config)

        return jax.eval_shape(life, traced, key_shape(), jax.ShapeDtypeStruct((), jnp.int32))

    def _nested(self, config: Arrays) -> dict[str, Any]:
        return self._space.unflatten({**self._fixed, **config})


_fold = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))


def member_keys(seed: int, numbers: np.ndarray) -> jax.Array:
    """The key of each member: `fold_in(key(seed), number)`, shape of `numbers`, `(lanes,)`."""
    return _fold(jax.random.key(seed), numbers.astype(np.uint32))


def key_shape() -> jax.ShapeDtypeStruct:
    """Shape and type of a member's key."""
    return jax.eval_shape(lambda: jax.random.key(0))


def _arrays(name: str, tree: PyTree) -> PyTree:
    """Arrays with a type of their own in place of Python numbers.

    **Raises:** `ValueError` for what is no array, naming the function that returned it.
    """

    def array(path: Any, leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
            return jnp.asarray(leaf)
        where = jax.tree_util.keystr(path)
        raise ValueError(
            f"{name!r}: expected arrays, received {leaf!r:.60} at {where or 'the top'}; keep it "
            "out of what is returned, as equinox.partition(model, equinox.is_array) does"
        )

    return jax.tree_util.tree_map_with_path(array, tree)


def is_input(path: str, space: SearchSpace) -> bool:
    """Whether a hyperparameter can be an input of a program: a number, or a constant."""
    if isinstance(space.domains[path], Constant):
        return True
    try:
        _type_of(path, space)
    except ValueError:
        return False
    return True


def _type_of(path: str, space: SearchSpace) -> Any:
    """The type of a hyperparameter that is an input of the program.

    **Raises:** `ValueError` if it is no number.
    """
    domain = space.domains[path]
    if isinstance(domain, Float) or domain.differentiable:
        return jnp.result_type(float)
    if not isinstance(domain, Listed):
        return jnp.result_type(int)
    kinds = {type(plain(value)) for value in domain.options}
    for allowed, kind in (({bool}, bool), ({int}, int), ({int, float}, float)):
        if kinds <= allowed:
            return jnp.result_type(kind)
    raise ValueError(
        f"{path!r}: expected numbers, as hyperparameters are inputs of the program, received "
        f"{domain}; name it in 'buckets', for one program for each of its values"
    )
