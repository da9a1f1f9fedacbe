"""Programs that are compiled again and again without need: found, and named once."""

import warnings
from collections import Counter
from types import CellType, FunctionType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

# As often may one have two problems, or two estimators, that differ in closures only.
_ALLOWED = 3
# All optimizers of optax are chains of functions, which differ in the functions of the chain.
_DEPTH = 3

_compilations: Counter = Counter()


class RecompilationWarning(UserWarning):
    """The same code has been compiled several times for arguments of the same shapes."""


def numbers_traced(tree: PyTree) -> PyTree:
    """Options that are Python floats as arrays, so that a new number is no new program.

    Zero stays: it often means that something is left out.
    """
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float) and x else x, tree)


def note_compilation(name: str, static: PyTree, arguments: PyTree) -> None:
    """To be called in a function that is being traced; warns when it was traced too often.

    **Arguments:**

    - `name`: of the function.
    - `static`: what it is compiled for: the problem, the estimator. Functions in it are told apart
      by their code, where `jit` goes by identity.
    - `arguments`: what its arrays are traced for.
    """
    functions = [_code(leaf) for leaf in jax.tree.leaves(static) if callable(leaf)]
    if not functions:
        return
    kinds = jax.tree.map(lambda x: None, eqx.filter(static, eqx.is_array))
    # The type tells the sharding on a mesh with explicit axes.
    shapes = jax.tree.map(lambda x: str(jax.typeof(x)) if eqx.is_array(x) else None, arguments)
    numbers = [leaf for leaf in jax.tree.leaves(static) if isinstance(leaf, int | str)]
    seen = (name, tuple(functions), str(jax.tree.structure(kinds)), str(shapes), str(numbers))
    _compilations[seen] += 1
    if _compilations[seen] == _ALLOWED + 1:
        warnings.warn(
            f"{name} has been compiled {_ALLOWED + 1} times for the same code and shapes, because "
            "the problem, the estimator or the algorithm is made anew for each call and functions "
            "are compared by identity: make the BilevelProblem, the estimator, optimizers and "
            "functions once, outside of the loop, and pass what changes as hparams or batch.",
            RecompilationWarning,
            stacklevel=2,
        )


def _code(function: Any, depth: int = _DEPTH) -> Any:
    """Equal for functions of the same code, and of the same code in what they close over."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    if not isinstance(function, FunctionType):
        return type(function)
    if not depth or not function.__closure__:
        return function.__code__
    inside = jax.tree.leaves([_contents(cell) for cell in function.__closure__])
    return function.__code__, *(_code(leaf, depth - 1) for leaf in inside if callable(leaf))


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a variable that has no value yet
        return None
