"""The bilevel problem: two losses (or an optimality map) and their derivatives.

minimise over hparams   outer(w*, hparams; outer batch)
subject to              w* in argmin over w of inner(w, hparams; inner batch)
"""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import received, require_choice, require_function


class BilevelProblem(eqx.Module):
    """Two plain functions over any pytrees.

    **Arguments:**

    - `inner`: `inner(params, hparams, batch) -> loss`, the training objective. It may be `None`
      when `optimality` is given.
    - `outer`: `outer(params, hparams, batch) -> loss`, the validation objective.
    - `optimality`: optional `optimality(params, hparams, batch) -> residual`, a pytree like
      `params` that is zero at the inner solution: the fixed-point residual of a proximal step, a
      KKT system. By default the gradient of `inner` with respect to `params`.
    - `has_aux`: both losses return `(loss, aux)`.
    - `stochastic`: both losses (and `optimality`) take a fourth argument `key`. One key serves a
      whole linear solve, so that the operator stays the same from product to product.

    - `biased`: what to do about a hyperparameter that acts both smoothly and through an operation
      without derivative (a dropout rate that scales, and is compared with random numbers):
      `"refuse"` it by name, since its gradient is a part of the truth only, or `"keep"` that part,
      with a warning and an `info.error` that is not known.

    Losses must be scalars: anything else is a `ValueError` that names the loss and its shape.
    Leaves of `params` and `hparams` that are not inexact arrays (step counts, activation functions)
    are carried along and not differentiated.
    """

    inner: Callable | None
    outer: Callable
    optimality: Callable | None = None
    has_aux: bool = eqx.field(static=True, default=False)
    stochastic: bool = eqx.field(static=True, default=False)
    biased: Literal["refuse", "keep"] = eqx.field(static=True, default="refuse")

    def __check_init__(self) -> None:
        require_choice("BilevelProblem", "biased", self.biased, ("refuse", "keep"))
        for name in ("inner", "outer", "optimality"):
            given = getattr(self, name)
            if given is not None or name == "outer":
                require_function("BilevelProblem", name, given)
        if self.inner is None and self.optimality is None:
            raise ValueError(
                "BilevelProblem needs `inner` or `optimality`; both are None, expected a function."
            )

    def inner_loss(
        self, params: PyTree, hparams: PyTree, batch: PyTree, key: Array | None = None
    ) -> tuple[Scalar, PyTree]:
        """The inner loss and its auxiliary output (`None` without `has_aux`)."""
        if self.inner is None:
            raise ValueError("This problem has an optimality map and no inner loss.")
        return self._loss("inner", self.inner, params, hparams, batch, key)

    def outer_loss(
        self, params: PyTree, hparams: PyTree, batch: PyTree, key: Array | None = None
    ) -> tuple[Scalar, PyTree]:
        """The outer loss and its auxiliary output (`None` without `has_aux`)."""
        return self._loss("outer", self.outer, params, hparams, batch, key)

    def evaluation_loss(
        self, params: PyTree, hparams: PyTree, batch: PyTree, key: Array | None = None
    ) -> Scalar:
        """What a run is judged by: the outer loss, unless a problem knows better.

        The worst case of a game, the objective of a feasible point; see `hypergrad.outer.run`.
        """
        return self.outer_loss(params, hparams, batch, key)[0]

    def fitting(self, params: PyTree, data: PyTree) -> PyTree:
        """A part of all data on which the losses can be traced with these params; all of them."""
        return data

    def check_start(self, params: PyTree, hparams: PyTree) -> None:
        """Refuse a start that the problem does not allow; any is allowed, by default.

        **Raises:** `ValueError` that names the leaf.
        """

    @staticmethod
    def minimax(
        f: Callable,
        *,
        opponent: PyTree = None,
        worst: Callable | None = None,
        stochastic: bool = False,
    ) -> "BilevelProblem":
        """`min over hparams, max over params, of f(params, hparams, batch)`.

        The problem with `inner = −f` and `outer = f`: a `hypergrad.outer.MinimaxProblem`, whose
        page has the arguments.
        """
        from hypergrad.outer.minimax import MinimaxProblem

        return MinimaxProblem(f, opponent=opponent, worst=worst, stochastic=stochastic)

    def residual(
        self, params: PyTree, hparams: PyTree, batch: PyTree, key: Array | None = None
    ) -> PyTree:
        """What vanishes at the inner solution, like `params` (`None` where not differentiable)."""
        _require_real(params=params, hparams=hparams)
        if self.optimality is not None:
            arguments = (params, hparams, batch, *self._key(key))
            value = _called("optimality map", self.optimality, arguments)
            expected = eqx.filter(params, eqx.is_inexact_array)
            if not same_form(value, expected):
                raise ValueError(
                    "The optimality map must return a pytree like params: expected "
                    f"{jax.tree.map(jnp.shape, expected)}, received "
                    f"{jax.tree.map(jnp.shape, value)}."
                )
            return value
        return eqx.filter_grad(lambda p: self.inner_loss(p, hparams, batch, key)[0])(params)

    def inner_parts(self) -> list[Callable]:
        """The functions `(params, hparams, batch, key)` that make the inner problem.

        As the user wrote them, without the derivatives taken of them: the loss; or the functions
        that the optimality map is made of, if it says which (`parts`), and otherwise the map.
        """
        if self.optimality is None:
            return [lambda *a: self.inner_loss(*a)[0]]
        parts = getattr(self.optimality, "parts", None)
        if parts is None:
            return [self.residual]
        return [lambda p, h, b, k, part=part: part(p, h, b, *self._key(k)) for part in parts()]

    def traced(
        self,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        outer_batch: PyTree,
        key: Array | None = None,
    ) -> "BilevelProblem":
        """The same problem for arguments of these shapes, its losses traced.

        A hypergradient differentiates each loss several times. Traced, its Python code runs once
        for all of them. An optimality map stays as it is.
        """
        extra = self._key(key)
        arguments = (params, hparams, inner_batch, outer_batch)
        if any(_explicit(leaf) for leaf in jax.tree.leaves(arguments)):
            # The type of an array then says how it is sharded, and a program traced for one
            # sharding takes no other.
            return self
        outer = _traced(self.outer, params, hparams, outer_batch, *extra)
        if self.inner is None or self.optimality is not None:
            return eqx.tree_at(lambda p: p.outer, self, outer)
        inner = _traced(self.inner, params, hparams, inner_batch, *extra)
        return eqx.tree_at(lambda p: (p.inner, p.outer), self, (inner, outer))

    def _key(self, key: Array | None) -> tuple:
        if not self.stochastic:
            return ()
        if key is None:
            raise ValueError("This problem is stochastic: pass `key`.")
        return (key,)

    def _loss(
        self,
        name: str,
        function: Callable,
        params: PyTree,
        hparams: PyTree,
        batch: PyTree,
        key: Array | None,
    ) -> tuple[Scalar, PyTree]:
        _require_real(params=params, hparams=hparams)
        out = _called(f"{name} loss", function, (params, hparams, batch, *self._key(key)))
        if self.has_aux:
            if not (isinstance(out, tuple) and len(out) == 2):
                raise ValueError(
                    f"With has_aux, the {name} loss: expected (loss, aux), "
                    f"received {type(out).__name__}."
                )
            loss, aux = out
        else:
            loss, aux = out, None
        if isinstance(loss, tuple):
            raise ValueError(
                f"The {name} loss returned a tuple; expected a scalar. "
                "Set has_aux=True if its second element is auxiliary output."
            )
        if not eqx.is_array_like(loss):
            raise ValueError(f"The {name} loss: expected a real scalar, received {received(loss)}.")
        loss = jnp.asarray(loss)
        if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise ValueError(
                f"The {name} loss: expected a real scalar, "
                f"received shape {loss.shape}, dtype {loss.dtype}."
            )
        return loss, aux


def _called(name: str, function: Callable, arguments: tuple) -> Any:
    """The function's value; refuses one that does not take so many arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        taken = ", ".join(("params", "hparams", "batch", "key")[: len(arguments)])
        stochastic = "with" if len(arguments) == 4 else "without"
        raise ValueError(
            f"The {name}: expected a function of ({taken}), {stochastic} stochastic=True; received "
            f"one of {inspect.signature(function)}."
        ) from None
    except ValueError:
        # Without a signature to be read, as some functions of other languages.
        pass
    return function(*arguments)


def same_form(one: PyTree, other: PyTree) -> bool:
    """Whether two pytrees have the same structure and shapes.

    Compared leaf by leaf: a container of the user's need not know when it equals another.
    """
    structure: Any = jax.tree.structure(one)
    shapes, expected = (list(map(jnp.shape, jax.tree.leaves(tree))) for tree in (one, other))
    return bool(structure == jax.tree.structure(other)) and shapes == expected


def _require_real(**trees: PyTree) -> None:
    """Refuse complex leaves: the inner Hessian of a real loss is not a linear map over them."""
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if eqx.is_array_like(leaf) and jnp.issubdtype(
                jnp.result_type(leaf), np.complexfloating
            ):
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)}: expected real arrays, received "
                    f"{jnp.result_type(leaf)}. Hold the real and the imaginary part as two real "
                    "arrays and combine them in the losses: `w = p['re'] + 1j * p['im']`."
                )


def _explicit(leaf: Any) -> bool:
    """Whether an array lies on a mesh with explicit axes."""
    return eqx.is_array(leaf) and any(jax.typeof(leaf).sharding.mesh.explicit_axes)


def _traced(function: Callable, *args: PyTree) -> Callable:
    # Of a function without a closure equinox believes that there is nothing to convert.
    return eqx.filter_closure_convert(lambda *args: function(*args), *args)
