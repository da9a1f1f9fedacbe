"""Elementwise operations of a traced program, evaluated in NumPy."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scipy import special

from hypergrad.jumps.program import Equation

# They move entries about without mixing them; of one sample only the numbers matter.
SHAPING = frozenset({"broadcast_in_dim", "reshape", "squeeze", "expand_dims"})

_NUMPY: dict[str, Callable] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "logistic": special.expit,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "cbrt": np.cbrt,
    "abs": np.abs,
    "sign": np.sign,
    "square": np.square,
    "pow": np.power,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "erf": special.erf,
    "erfc": special.erfc,
    "erf_inv": special.erfinv,
    "lgamma": special.gammaln,
    "digamma": special.digamma,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "not": np.logical_not,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt_to": np.less,
    "le_to": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "is_finite": np.isfinite,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "stop_gradient": lambda x: x,
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "optimization_barrier": lambda x: x,
    "reduce_precision": lambda x: x,
}


def known(eqn: Equation) -> bool:
    """Whether `apply` knows the operation."""
    special_cases = ("select_n", "integer_pow", "convert_element_type")
    return eqn.name in _NUMPY or eqn.name in SHAPING or eqn.name in special_cases


def apply(eqn: Equation, values: list) -> Any:
    """The output of an operation, of samples in place of its entries."""
    if eqn.name in SHAPING:
        return values[0]
    if eqn.name == "integer_pow":
        return np.power(values[0], float(eqn.params["y"]))
    if eqn.name == "convert_element_type":
        dtype = np.dtype(eqn.params["new_dtype"]) if not _extended(eqn) else None
        if dtype is not None and dtype.kind in "iu":
            return np.trunc(np.asarray(values[0], float))
        if dtype is not None and dtype.kind == "b":
            return np.asarray(values[0]) != 0
        return np.asarray(values[0], float)
    if eqn.name == "select_n":
        which, *cases = values
        result = cases[0]
        for number, case in enumerate(cases[1:], 1):
            result = np.where(np.asarray(which) == number, case, result)
        return result
    return _NUMPY[eqn.name](*values)


def _extended(eqn: Equation) -> bool:
    return jax.dtypes.issubdtype(eqn.params["new_dtype"], jax.dtypes.extended)
