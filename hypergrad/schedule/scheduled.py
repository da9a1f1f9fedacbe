"""An optimizer whose settings change from step to step, and from group to group of parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from hypergrad.expected import received, require_array, require_function
from hypergrad.paths import leaf_names

#: Settings of one step, by name, to an optimizer.
Make = Callable[[dict[str, Array]], optax.GradientTransformation]
#: The name of a leaf of the parameters (`"layers/0/weight"`) to that of its group.
GroupOf = Callable[[str], str]

BATCH_WEIGHT = "batch_weight"
ALL = "all"


def scheduled(
    optimizer: Make,
    values: Mapping[str, Float[Array, "steps groups"]],
    groups: Sequence[str] = (ALL,),
    group_of: GroupOf | None = None,
) -> optax.GradientTransformation:
    """An optax optimizer that is made anew at each step, of that step's settings.

    Each group of parameters has an optimizer of its own, so that a clipping by the global norm
    clips by the norm of the group. After the last step of the values the last one stays.

    **Arguments:**

    - `optimizer`: `optimizer(settings) -> optax.GradientTransformation`, of scalar settings. Its
      state must not depend on them in its shape.
    - `values`: for each setting its values over the steps and groups. `"batch_weight"` is not
      passed on: it multiplies the gradient before the optimizer sees it.
    - `groups`: names, in the order of the values' second axis.
    - `group_of`: the name of a leaf to that of its group. Default: all leaves are in one group.

    **Returns:** an `optax.GradientTransformation`; derivatives in `values` go through it.
    """
    require_function("scheduled", "optimizer", optimizer)
    if not isinstance(values, Mapping) or not values:
        raise ValueError(
            "scheduled: values: expected a dict from settings to arrays, received "
            f"{'none' if isinstance(values, Mapping) else received(values)}."
        )
    for name, value in values.items():
        require_array("scheduled", f"values: {name!r}", value)
        if value.ndim != 2:
            raise ValueError(
                f"scheduled: values: {name!r}: expected the shape (steps, groups), received "
                f"{value.shape}."
            )
    if group_of is not None:
        require_function("scheduled", "group_of", group_of)
    steps = next(iter(values.values())).shape[0]

    def settings(step: Array, group: int) -> dict[str, Array]:
        at = jnp.minimum(step, steps - 1)
        return {name: value[at, group] for name, value in values.items()}

    def made(chosen: dict[str, Array]) -> optax.GradientTransformation:
        out = optimizer({k: v for k, v in chosen.items() if k != BATCH_WEIGHT})
        if not isinstance(out, optax.GradientTransformation):
            raise ValueError(
                "optimizer: expected a function of the settings that returns an "
                f"optax.GradientTransformation, received a {type(out).__name__}."
            )
        return out

    def init(params: PyTree) -> tuple:
        zero = jnp.zeros((), jnp.int32)
        parts = _parts(params, groups, group_of)
        return zero, [made(settings(zero, g)).init(part) for g, part in enumerate(parts)]

    def update(updates: PyTree, state: tuple, params: PyTree | None = None) -> tuple:
        step, states = state
        gradients = _parts(updates, groups, group_of)
        points = [None] * len(groups) if params is None else _parts(params, groups, group_of)
        moves: dict[str, Array] = {}
        new = []
        for g, (gradient, point, old) in enumerate(zip(gradients, points, states, strict=True)):
            chosen = settings(step, g)
            if BATCH_WEIGHT in chosen:
                weight = chosen[BATCH_WEIGHT]
                gradient = {k: (weight * v).astype(v.dtype) for k, v in gradient.items()}
            move, after = made(chosen).update(gradient, old, point)
            moves |= move
            new.append(after)
        structure = jax.tree.structure(updates)
        moved = jax.tree.unflatten(structure, [moves[name] for name in leaf_names(updates)])
        return moved, (step + 1, new)

    return optax.GradientTransformation(init, update)


def group_names(params: PyTree, group_of: GroupOf | None) -> tuple[str, ...]:
    """The groups of these parameters, in the order in which their leaves come."""
    if group_of is None:
        return (ALL,)
    return tuple(dict.fromkeys(_checked(group_of(name), name) for name in leaf_names(params)))


def _parts(tree: PyTree, groups: Sequence[str], group_of: GroupOf | None) -> list[dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {name: {} for name in groups}
    for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True):
        group = ALL if group_of is None else _checked(group_of(name), name)
        if group not in parts:
            raise ValueError(
                f"group_of: parameter {name!r} is in group {group!r}; expected one of {groups}."
            )
        parts[group][name] = leaf
    return list(parts.values())


def _checked(group: Any, name: str) -> str:
    if not isinstance(group, str):
        raise ValueError(f"group_of: expected a name for {name!r}, received {group!r}.")
    return group
