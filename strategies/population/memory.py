"""How much memory a program will take, read from shapes before anything is compiled.

The trace of a program lists every array that it makes. Most of them are never written: the compiler
computes elementwise results where they are used. What remains is what multiplications, gathers,
loops and the like read and write, and how much of that is alive at a time.
"""

import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

#: Computed where they are used, as are their chains.
_VIEWS = frozenset({"reshape", "squeeze", "expand_dims", "transpose", "rev", "slice"})
_LOOPS = frozenset({"while", "scan"})
#: Written to memory, and read from it.
_SOLID = frozenset(
    {
        "dot_general", "conv_general_dilated", "gather", "scatter", "scatter-add", "sort",
        "dynamic_update_slice", "concatenate", "cumsum", "cholesky", "triangular_solve", "fft",
        "while", "scan", "cond", "custom_call",
    }
)  # fmt: skip


def size_of(aval: Any) -> int:
    """Bytes of an array of a shape and type."""
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
        aval = jax.eval_shape(jax.random.key_data, aval)
    return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize


def tree_size(tree: Any) -> int:
    """Bytes of a pytree of arrays or of their shapes."""
    return sum(size_of(leaf) for leaf in jax.tree.leaves(tree))


def peak(jaxpr: Any) -> int:
    """The most bytes that the results inside a program take at a time, its inputs left out."""
    names: dict[Any, Any] = {}
    equations = list(_flat(jaxpr, names))
    results = [names.get(v, v) for v in jaxpr.outvars if isinstance(v, core.Var)]
    read = {v for name, _, inputs, _ in equations if name in _SOLID for v in inputs}
    written = read.union(results)

    def is_written(name: str, variable: Any) -> bool:
        return name in _SOLID or (variable in written and name not in _VIEWS)

    # Who reads what is not written reads what that was made of, as late as that is wanted.
    last = dict.fromkeys(results, len(equations))
    for place, (name, _, inputs, outputs) in reversed(list(enumerate(equations))):
        late = max((last.get(v, place) for v in outputs if not is_written(name, v)), default=place)
        for v in inputs:
            last[v] = max(last.get(v, 0), late)
    ends: dict[int, list[Any]] = {}
    alive = most = 0
    for place, (name, inner, _, outputs) in enumerate(equations):
        made = [v for v in outputs if v in last and is_written(name, v)]
        size = sum(size_of(v.aval) for v in made)
        within = max(map(peak, inner), default=0)
        # What a loop carries is alive beside its next value.
        most = max(most, alive + (size + within if name in _LOOPS else max(size, within)))
        alive += size
        for v in made:
            ends.setdefault(last[v], []).append(v)
        alive -= sum(size_of(v.aval) for v in ends.pop(place, []))
    return most


def _flat(
    jaxpr: Any, names: dict[Any, Any]
) -> Iterator[tuple[str, list[Any], list[Any], list[Any]]]:
    """The equations as (name, inner programs, inputs, outputs), calls written out.

    `names` tells what a variable is called elsewhere.
    """

    def known(variables: Any) -> list[Any]:
        return [names.get(v, v) for v in variables if isinstance(v, core.Var)]

    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = list(core.jaxprs_in_params(equation.params)) if equation.params else []
        if inner and name not in _SOLID:
            body = inner[0]
            within = {
                v: names.get(given, given)
                for v, given in zip(body.invars, equation.invars, strict=False)
                if isinstance(given, core.Var)
            }
            yield from _flat(body, within)
            for outer, made in zip(equation.outvars, body.outvars, strict=False):
                if isinstance(made, core.Var):
                    names[outer] = within.get(made, made)
            continue
        yield name, inner, known(equation.invars), list(equation.outvars)


def refuse(
    size: int, per_member: float, shared: float, free: int | None, *, name: str = "size"
) -> None:
    """Refuse a population that does not fit.

    **Arguments:**

    - `size`: members.
    - `per_member`, `shared`: predicted bytes.
    - `free`: bytes that it may take; `None` if nobody knows.
    - `name`: of the option that says how many members.

    **Raises:** `ValueError` with the number of members that would fit.
    """
    if free is None:
        return
    fitting = max(int((free - shared) / per_member), 0) if per_member else size
    if size > fitting:
        raise ValueError(
            f"{name!r}: expected at most {fitting} members, as each takes {per_member / 2**20:.3g} "
            f"MiB beside {shared / 2**20:.3g} MiB for all and {free / 2**20:.3g} MiB are free, "
            f"received {size}"
        )


def available(device: jax.Device) -> int | None:
    """Bytes that are free on a device, `None` if it does not say."""
    if device.platform == "cpu":
        try:
            with open("/proc/meminfo") as file:
                lines = dict(line.split(":", 1) for line in file)
            return int(lines["MemAvailable"].split()[0]) * 1024
        except (OSError, KeyError):
            try:
                return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            except (ValueError, OSError):
                return None
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
