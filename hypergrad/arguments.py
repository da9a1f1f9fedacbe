"""What every entry is given: a problem, a key and trees of arrays, refused in one line if not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from hypergrad.expected import received, require, require_key
from hypergrad.problem import BilevelProblem

# What holds numbers and is no array, by the package that it comes from; and the way out.
_FOREIGN = {
    "pandas": "pass its `.to_numpy()`",
    "polars": "pass its `.to_numpy()`",
    "torch": "pass its `.detach().numpy()`",
    "tensorflow": "pass its `.numpy()`",
    "flax": "of an nnx module pass `params` of `graphdef, params = nnx.split(model)`, and make the "
    "model in the losses with `nnx.merge(graphdef, params)`",
}


def check_call(owner: str, problem: Any, key: Any, **trees: PyTree) -> None:
    """Refuse what is no problem, no key, and leaves that no program can be compiled for.

    **Raises:** `ValueError` that names the argument.
    """
    require(owner, "problem", problem, BilevelProblem, "BilevelProblem(inner, outer)")
    check_key(owner, key)
    check_leaves(**trees)


def check_key(owner: str, key: Any) -> None:
    """Refuse a seed in place of a key, and what is neither a key nor `None`.

    **Raises:** `ValueError` with the call that makes the key.
    """
    if isinstance(key, int) and not isinstance(key, bool):
        raise ValueError(
            f"key: expected a JAX key, received the number {key}; write jax.random.key({key})."
        )
    if key is not None:
        require_key(owner, "key", key)


def check_leaves(**trees: PyTree) -> None:
    """Refuse leaves that hold numbers and are no arrays, and what no program can be compiled for.

    **Raises:** `ValueError` naming the argument, the leaf and the way out.
    """
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda leaf: bool(_foreign(leaf))
        ):
            way_out = _foreign(leaf)
            if way_out:
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)}: expected arrays, received "
                    f"{received(leaf)} of {type(leaf).__module__.split('.')[0]}; {way_out}."
                )
            if not _carried(leaf):
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)}: expected arrays, 64-bit integers or "
                    f"values that can be hashed, received {received(leaf)}."
                )


def as_arrays(tree: PyTree) -> PyTree:
    """Python floats and numpy values as JAX arrays, so that their values are traced.

    **Raises:** `ValueError` for an array of text or objects.
    """
    kinds = float | np.ndarray | np.generic

    def array(leaf: Any) -> Any:
        if not isinstance(leaf, kinds):
            return leaf
        try:
            return jnp.asarray(leaf)
        except TypeError:
            raise ValueError(
                f"expected arrays of numbers, received one of {np.asarray(leaf).dtype}."
            ) from None

    return jax.tree.map(array, tree)


def _carried(leaf: Any) -> bool:
    """Whether a compiled program takes it as an array, or as a constant."""
    if isinstance(leaf, int):
        return -(2**63) <= leaf < 2**63
    return isinstance(leaf, np.ndarray | jax.Array) or type(leaf).__hash__ is not None


def _foreign(leaf: Any) -> str | None:
    """The way out for an object of another package; classes of the user's own inherit from it."""
    for kind in type(leaf).__mro__:
        package, _, rest = kind.__module__.partition(".")
        if package == "flax" and not (rest.startswith("nnx") and kind.__name__ == "Module"):
            continue
        if package in _FOREIGN:
            return _FOREIGN[package]
    return None
