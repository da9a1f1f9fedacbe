"""A traced program with every call written out in its place."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from hypergrad.programs import parts

# Operations whose traced body is not looked into. Each is continuous, or discontinuous only where
# a matrix loses rank or at a pole, but computed by steps that are not: the normal quantile from the
# bits of a number, since JAX 0.12.
_WHOLE = frozenset(
    {"interp", "pinv", "lstsq", "det", "slogdet", "expm", "truncated_normal", "ndtri", "gammasgn"}
)
# Their leading arguments in which they are continuous, where those are not all: the rest is a
# tolerance, to which singular values are compared.
_CONTINUOUS = {"lstsq": 2, "pinv": 1}
_OF_JAX = str(Path(jax.__file__).parent)
CONTROL = frozenset({"scan", "while", "cond"})
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Equation(NamedTuple):
    """One operation, as `traced`; values are numbered, constants stand for themselves."""

    name: str
    traced: Any
    params: dict[str, Any]
    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]
    avals: tuple[Any, ...]


class Program(NamedTuple):
    """A traced program; `shapes` and `dtypes` of all values by their numbers."""

    inputs: tuple[int, ...]
    equations: list[Equation]
    outputs: tuple[Any, ...]
    shapes: dict[int, tuple[int, ...]]
    dtypes: dict[int, Any]

    def entries(self) -> int:
        """Of all values together."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def depending(self, on: Iterable[Any]) -> frozenset[Any]:
        """The values that depend on some of the inputs, with those."""
        reached = set(on)
        for eqn in self.equations:
            if not reached.isdisjoint(eqn.inputs):
                reached.update(eqn.outputs)
        return frozenset(reached)


class Constant:
    """What was `given`; its `value` is a number of shape `()`, `None` for any other constant."""

    def __init__(self, value: Any) -> None:
        self.given = value
        known = not isinstance(value, jax.core.Tracer) and np.ndim(value) == 0
        self.dtype = getattr(value, "dtype", np.dtype(type(value)))
        known = known and not jax.dtypes.issubdtype(self.dtype, jax.dtypes.extended)
        self.value = np.asarray(value) if known else None


def inner_program(jaxpr: Any) -> Program:
    """`flat` for the body of a loop, with or without its constants."""
    if isinstance(jaxpr, ClosedJaxpr):
        return flat(jaxpr)
    return flat(ClosedJaxpr(jaxpr, ()))


def flat(closed: ClosedJaxpr) -> Program:
    """The program with every call (`jit`, custom rules, `checkpoint`) written out in its place."""
    equations: list[Equation] = []
    shapes: dict[int, tuple[int, ...]] = {}
    dtypes: dict[int, Any] = {}
    computed: dict[Any, list[int]] = {}

    def fresh(aval: Any) -> int:
        number = len(shapes)
        shapes[number] = getattr(aval, "shape", ())
        dtypes[number] = getattr(aval, "dtype", None)
        return number

    def write(jaxpr: Any, constants: Any, values: dict[Any, Any]) -> list[Any]:
        values |= {v: Constant(c) for v, c in zip(jaxpr.constvars, constants, strict=True)}

        def read(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return Constant(atom.val)
            return values[atom]

        for eqn in jaxpr.eqns:
            inputs = tuple(read(atom) for atom in eqn.invars)
            called = _called(eqn)
            if called is not None:
                inside = dict(zip(called.jaxpr.invars, inputs, strict=True))
                results = write(called.jaxpr, called.consts, inside)
            else:
                # What is computed twice is one value: two calls of one norm, say.
                same = _identity(eqn, inputs)
                if same in computed:
                    results = computed[same]
                else:
                    avals = tuple(v.aval for v in eqn.outvars)
                    results = [fresh(aval) for aval in avals]
                    computed[same] = results
                    equations.append(
                        Equation(_name(eqn), eqn, eqn.params, inputs, tuple(results), avals)
                    )
            values |= dict(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    arguments = {v: fresh(v.aval) for v in closed.jaxpr.invars}
    inputs = tuple(arguments.values())
    outputs = write(closed.jaxpr, closed.consts, dict(arguments))
    return Program(inputs, equations, tuple(outputs), shapes, dtypes)


def _identity(eqn: Any, inputs: tuple) -> Any:
    """Equal for equations that compute the same."""
    if eqn.primitive.name in CONTROL or eqn.effects:
        return eqn, inputs
    named = tuple(
        repr(a.value) if isinstance(a, Constant) and a.value is not None else a for a in inputs
    )
    return eqn.primitive.name, named, repr(eqn.params), repr(eqn.outvars[0].aval)


def _name(eqn: Any) -> str:
    if eqn.primitive.name == "call_hi_primitive":
        return type(eqn.params["_prim"]).__name__
    return eqn.primitive.name


def _called(eqn: Any) -> Any:
    """The program that an equation calls, if it is to be written out."""
    name = eqn.primitive.name
    if name in CONTROL or _function(eqn) in _WHOLE:
        return None
    for field in _CALLS:
        body = eqn.params.get(field)
        if not isinstance(body, ClosedJaxpr):  # of which JAX 0.12 makes one class with `Jaxpr`
            if not isinstance(body, Jaxpr):
                continue
            body = ClosedJaxpr(body, ())
        if len(body.jaxpr.invars) != len(eqn.invars):
            return None
        # A solver that iterates to a tolerance, and has its derivative from a rule.
        return None if name.startswith("custom_") and _loops(body.jaxpr) else body
    return None


def _function(eqn: Any) -> str:
    """The name of the function of JAX that a call was traced from, without its underscore.

    Empty for a function of somebody else, which may have any name.
    """
    body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    traced = getattr(getattr(body, "jaxpr", body), "debug_info", None)
    # "name at file:line"
    name, _, source = str(getattr(traced, "func_src_info", "")).partition(" at ")
    return name.lstrip("_") if source.startswith(_OF_JAX) else ""


def continuous_inputs(eqn: Any) -> int:
    """How many of the first inputs of a whole operation it does not jump in: mostly all."""
    return _CONTINUOUS.get(_function(eqn), len(eqn.invars))


def _loops(jaxpr: Any) -> bool:
    return any(eqn.primitive.name == "while" or any(map(_loops, parts(eqn))) for eqn in jaxpr.eqns)
