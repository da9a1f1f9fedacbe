"""What a run is of, as a fingerprint of content.

Two functions of one name may do different things, and one function keeps its behaviour when it is
defined anew in another process. So functions are told apart by what they hold: their code, default
arguments, closures, the globals that they read, the object that they are bound to; arrays by
their bytes; and losses, which can be traced, by their programs.
"""

import dis
import functools
import hashlib
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from hypergrad.outer.base import OuterAlgorithm
from hypergrad.outer.batches import Sampler
from hypergrad.problem import BilevelProblem

_ADDRESS = re.compile(r" at 0x[0-9a-f]+|\b0x[0-9a-f]{6,}")
_LIBRARIES = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")
)
_EXACT = 2**53  # integers below are floats, too
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))


def fingerprint(thing: Any) -> str:
    """A digest of the content of any Python object, the same in another process.

    A change of the Python version may change it: compiled code is part of the content.
    """
    return _Fingerprints()(thing)


def fingerprint_program(function: Any, *args: PyTree) -> str:
    """A digest of the traced program of a function, with all constants that it closes over."""
    traced = eqx.filter_make_jaxpr(function)(*args)[0]
    text = _ADDRESS.sub("", str(traced.jaxpr))
    return fingerprint((text, list(_constants(traced))))


def identity_of_run(
    problem: BilevelProblem,
    algorithm: OuterAlgorithm,
    sampler: Sampler,
    params: PyTree,
    hparams: PyTree,
    data: tuple,
    seed: int,
) -> dict[str, str]:
    """A fingerprint for each part of what a run is of, by which its checkpoint is known again."""
    inner_data, outer_data = (problem.fitting(params, part) for part in data[:2])
    key = jax.random.key(0)
    inner = problem.residual if problem.inner is None else problem.inner_loss
    programs = {
        "inner_loss": fingerprint_program(inner, params, hparams, inner_data, key),
        "outer_loss": fingerprint_program(problem.outer_loss, params, hparams, outer_data, key),
    }
    names = ("inner_data", "outer_data", "holdout_data")
    trees = {"params": params, "hparams": hparams, **dict(zip(names, data, strict=True))}
    parts = {name: jax.tree.leaves(tree) for name, tree in trees.items()}
    rest = {"algorithm": algorithm, "sampler": sampler, "seed": seed}
    return programs | {name: fingerprint(part) for name, part in (parts | rest).items()}


def plain_array(x: Any) -> np.ndarray:
    """An array in NumPy's form; of random keys their data."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x)


def _constants(program: Any) -> Iterator[Any]:
    """The constants of a traced program and of the programs inside, and its host functions."""
    yield from getattr(program, "consts", ())
    for eqn in getattr(program, "jaxpr", program).eqns:
        yield from (v.val for v in eqn.invars if hasattr(v, "val"))
        if "callback" in eqn.primitive.name:
            yield getattr(eqn.params.get("callback"), "callback_func", None)
        for part in jax.tree.leaves(list(eqn.params.values())):
            if hasattr(getattr(part, "jaxpr", part), "eqns"):
                yield from _constants(part)


class _Fingerprints:
    """The digests of one object and of all that it holds, each computed once."""

    def __init__(self) -> None:
        self.known: dict[int, str] = {}
        # An id belongs to an object only as long as it lives.
        self.alive: list[Any] = []

    def __call__(self, thing: Any) -> str:
        if id(thing) not in self.known:
            self.alive.append(thing)
            self.known[id(thing)] = "itself"
            content = f"{type(thing).__qualname__}:{self.content(thing)}"
            self.known[id(thing)] = hashlib.sha256(content.encode()).hexdigest()
        return self.known[id(thing)]

    def each(self, *things: Any) -> str:
        return ",".join(map(self, things))

    def content(self, thing: Any) -> str:
        match thing:
            case _ if isinstance(thing, _PLAIN):
                return repr(thing)
            case types.ModuleType():
                return thing.__name__
            case jax.Array() | np.ndarray() | np.generic():
                array = plain_array(thing)
                if array.dtype == object:
                    return self.each(array.shape, array.tolist())
                data = hashlib.sha256(array.tobytes()).hexdigest()
                return f"{thing.dtype}{array.shape}{data}"
            case Mapping():
                return ",".join(sorted(self.each(k, v) for k, v in thing.items()))
            case set() | frozenset():
                return ",".join(sorted(map(self, thing)))
            case tuple() | list():
                return self.each(type(thing), *thing)
            case types.CodeType():
                return self.each(thing.co_code, thing.co_consts, thing.co_names, thing.co_freevars)
            case types.FunctionType():
                return self.function(thing)
            case functools.partial():
                return self.each(thing.func, thing.args, thing.keywords)
            case types.MethodType():
                return self.each(thing.__func__, thing.__self__)
            case types.CellType():
                return self.cell(thing)
            case type():
                name = f"{thing.__module__}.{thing.__qualname__}"
                if _in_library(getattr(sys.modules.get(thing.__module__), "__file__", None)):
                    return name
                own = {k: v for k, v in vars(thing).items() if _is_behaviour(v)}
                return name + self.each(thing.__bases__, own)
            case staticmethod() | classmethod():
                return self(thing.__func__)
            case property():
                return self.each(thing.fget, thing.fset)
        return self.instance(thing)

    def function(self, function: types.FunctionType) -> str:
        code = function.__code__
        read = {}
        if not _in_library(code.co_filename):
            names = set(_global_names(code))
            read = {k: v for k, v in function.__globals__.items() if k in names}
        held = (function.__defaults__, function.__kwdefaults__, function.__closure__)
        return self.each(code, *held, read, vars(function))

    def cell(self, cell: types.CellType) -> str:
        try:
            held = cell.cell_contents
        except ValueError:  # of a name that is not bound yet
            return ""
        # Schedules of optax turn their own integers into floats when they are called.
        return self(float(held) if type(held) is int and abs(held) < _EXACT else held)

    def instance(self, thing: Any) -> str:
        if hasattr(thing, "__wrapped__"):  # a compiled function
            return self(thing.__wrapped__)
        if isinstance(thing, types.BuiltinFunctionType | types.MethodWrapperType):
            return f"{thing.__qualname__}{self(thing.__self__)}"
        try:
            reduced = thing.__reduce_ex__(4)
        except Exception:  # whatever an object's own code raises: it cannot be taken apart
            reduced = vars(thing) if hasattr(thing, "__dict__") else repr(thing)
        if isinstance(reduced, tuple):
            # What it is made by, of, and with; the rest are iterators over its entries.
            made, entries = reduced[:3], [list(x) for x in reduced[3:5] if x is not None]
            return self.each(*made, *entries)
        if isinstance(reduced, str):
            return _ADDRESS.sub("", reduced)
        return self.each(type(thing), reduced)


def _global_names(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _is_behaviour(member: Any) -> bool:
    """What a class does, without what Python and its decorators leave there."""
    kinds = (types.FunctionType, staticmethod, classmethod, property, *_PLAIN[1:-1])
    return isinstance(member, kinds)


def _in_library(file: str | None) -> bool:
    return file is None or file.startswith(("<frozen", *_LIBRARIES))
