"""Whether a decision loses nothing, seen by running the program to where the decision flips.

A second look, for what is not elementwise: a projection that sorts and counts, an interpolation
between neighbours, a branch. The inputs are drawn at random, and one hyperparameter is moved.

- Where the decision's output changes, all that follows is computed on both sides. A value that
  differs there has jumped; the function is continuous if its outputs have not.
- Many small steps are no jumps that could be seen, and make a slope that no derivative tells: along
  the way the derivative must agree with differences.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hypergrad.jumps import elementwise
from hypergrad.jumps.program import Constant, Equation, Program

# Programs with more entries in all their values are not run.
_ENTRIES = 100_000
_DRAWS = 3
# What a drawn hyperparameter is multiplied with.
_SCALE = np.geomspace(1.03e-2, 1e2, 64)
_HALVINGS = 40
_ENOUGH = 2  # in all: one may be a coincidence
# Relative size of a jump, and of what rounding leaves where large numbers cancel.
_JUMP, _ROUNDING = 1e-3, 1e-4
# The sides are as far apart, relatively: where rounding decides, a branch may err by some digits.
_APART = 1e-6
# The size of a value is one that nine of ten places do not exceed.
_USUAL = 0.9
# Over more entries than this a sum may hide that one of them has jumped.
_FEW = 300
# Differences are taken over this share of a number. At kinks they differ from the derivative, which
# are few: it must agree with three of four, to a percent and the rounding of a difference.
_DIFFERENCE, _AGREES, _PERCENT = 0.02, 0.75, 0.01
# Without arithmetic between entries.
_MOVING = elementwise.SHAPING | {
    "transpose", "rev", "slice", "dynamic_slice", "gather", "concatenate", "pad", "split", "copy",
}  # fmt: skip


def seen_to_jump(program: Program, followed: frozenset[int], site: Equation) -> bool | None:
    """Whether the outputs jump where a decision flips, or hide a slope.

    **Arguments:**

    - `program`: without its calls.
    - `followed`: those of its inputs that are, or depend on, a hyperparameter.
    - `site`: the decision, an operation with a discrete output.

    **Returns:** `None` if nobody knows: the program is too large to be run, or no place was found
    where the decision flips.
    """
    if sum(int(np.prod(shape)) for shape in program.shapes.values()) > _ENTRIES:
        return None
    met = 0
    names = _unknown(program)
    with jax.ensure_compile_time_eval():
        for moved in followed:

            @jax.jit
            def look(values: list[Any], moved: int = moved) -> tuple:
                return _look(program, site, moved, dict(zip(names, values, strict=True)))

            for seed in range(_DRAWS):
                try:
                    seen = look(_drawn(program, names, followed, seed))
                    found, jumped, agrees = map(np.asarray, seen)
                # Of an operation, or a user's callback in it, on numbers that were drawn.
                except (TypeError, ValueError, NotImplementedError, RuntimeError):
                    return None
                if np.any(found) and (np.any(found & jumped) or not agrees):
                    return True
                met += int(np.sum(found))
    return False if met >= _ENOUGH else None


def _unknown(program: Program) -> list[Any]:
    """The inputs, and constants of a program that is itself traced within another."""
    atoms = (a for eqn in program.equations for a in eqn.inputs if isinstance(a, Constant))
    traced = (a for a in atoms if isinstance(a.given, jax.core.Tracer))
    return list(dict.fromkeys([*program.inputs, *traced]))


def _drawn(program: Program, names: list[Any], followed: frozenset[int], seed: int) -> list[Any]:
    """Hyperparameters and lone numbers are positive; arrays are anything."""
    rng = np.random.default_rng(seed)

    def draw(name: Any) -> Any:
        if isinstance(name, Constant):
            shape, dtype = name.given.shape, name.given.dtype
        else:
            shape, dtype = program.shapes[name], program.dtypes[name]
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(seed, impl=dtype._impl.name), shape)
        if jnp.issubdtype(dtype, jnp.inexact):
            positive = name in followed or np.prod(shape) == 1
            value = rng.uniform(0.05, 0.95, shape) if positive else rng.normal(size=shape)
            return jnp.asarray(value, dtype)
        # Words of a key may be any number, labels and flags not.
        below = 2**32 if dtype == np.uint32 else 2
        return jnp.asarray(rng.integers(0, below, shape), dtype)

    return [draw(name) for name in names]


def _look(program: Program, site: Equation, moved: int, given: dict[Any, Any]) -> tuple:
    """What is met along one input.

    **Returns:** for each crossing, whether it is one, with finite outputs, and whether an output
    jumps there; then whether derivative and differences agree.
    """
    outputs = {a for a in program.outputs if isinstance(a, int)}

    def at(scale: Any) -> dict[Any, Any]:
        return _run(program, {**given, moved: given[moved] * scale.astype(given[moved].dtype)})

    def decision(scale: Any) -> Any:
        return _decided(site, at(scale))

    def returned(scale: Any) -> list[Any]:
        values = at(scale)
        return [values[a] for a in outputs if _real(values[a])]

    def survey(scale: Any) -> tuple:
        values = at(scale)
        sizes = {a: _size(values[a]) for a in program.shapes if _real(values[a])}
        return _decided(site, values), sizes, _agree(returned, scale)

    scales = jnp.asarray(_SCALE, jnp.result_type(float))
    outcomes, sizes, agree = lax.map(survey, scales)
    usual = {name: jnp.quantile(size, _USUAL) for name, size in sizes.items()}
    outcomes = outcomes.reshape(len(_SCALE), -1)
    flips = jnp.any(outcomes[1:] != outcomes[:-1], axis=1)

    def crossing(number: Any) -> tuple:
        below = decision(scales[number])

        def halve(_: Any, ends: tuple) -> tuple:
            low, high = ends
            middle = (low + high) / 2
            same = jnp.all(decision(middle) == below)
            return jnp.where(same, middle, low), jnp.where(same, high, middle)

        low, high = lax.fori_loop(0, _HALVINGS, halve, (scales[number], scales[number + 1]))
        sides = at(low * (1 - _APART)), at(high * (1 + _APART))
        finite = [jnp.all(jnp.isfinite(sides[0][a])) for a in outputs if _real(sides[0][a])]
        met = jnp.all(jnp.stack([flips[number], *finite]))
        return met, _any(_jumped(program, *sides, usual), outputs)

    return *lax.map(crossing, jnp.arange(len(flips))), jnp.mean(agree) >= _AGREES


def _decided(site: Equation, values: dict[Any, Any]) -> Any:
    """The discrete value of an operation: its output, or the step that a remainder is on."""
    if site.name == "rem":
        dividend, divisor = (values[a] for a in site.inputs)
        return jnp.trunc(dividend / divisor)
    return values[site.outputs[-1] if site.name in ("sort", "top_k") else site.outputs[0]]


def _run(program: Program, values: dict[Any, Any]) -> dict[Any, Any]:
    """All values of a program."""
    atoms = (a for eqn in program.equations for a in eqn.inputs)
    values = {a: a.given for a in atoms if isinstance(a, Constant)} | values
    for eqn in program.equations:
        inputs = [values[a] for a in eqn.inputs]
        bound = eqn.traced.primitive.get_bind_params(eqn.params)
        # Before JAX 0.8 a pair, with the functions of operations that are written out here.
        functions, params = bound if isinstance(bound, tuple) else ((), bound)
        results = eqn.traced.primitive.bind(*functions, *inputs, **params)
        results = results if eqn.traced.primitive.multiple_results else [results]
        values |= dict(zip(eqn.outputs, results, strict=True))
    return values


def _agree(function: Any, scale: Any) -> Any:
    """Whether the derivative tells the difference to a number close by; what is not finite does."""
    step = _DIFFERENCE * scale
    points = scale + step * jnp.asarray([0, 0.5, 1], scale.dtype)
    values, slopes = lax.map(lambda point: jax.jvp(function, (point,), (step,)), points)
    agree = [jnp.ones((), bool)]
    for (a, _, b), (p, middle, q) in zip(values, slopes, strict=True):
        # By Simpson's rule, which is exact enough for a wave of a few steps.
        difference, told = b - a, (p + 4 * middle + q) / 6
        tolerance = _PERCENT * (jnp.abs(difference) + jnp.abs(told)) + _ROUNDING * jnp.abs(a)
        agree.append(jnp.all(~(jnp.abs(difference - told) > tolerance)))
    return jnp.all(jnp.stack(agree))


def _jumped(
    program: Program, low: dict[int, Any], high: dict[int, Any], usual: dict[int, Any]
) -> dict[int, Any]:
    """Whether each value differs between the sides of a crossing."""
    jumped: dict[int, Any] = {}
    hidden: dict[int, Any] = {}
    for eqn in program.equations:
        entering = [a for a in eqn.inputs if isinstance(a, int) and a in jumped]
        sizes = [_size(low[a]) for a in eqn.inputs if isinstance(a, int) and _real(low[a])]
        # What may be hidden once stays so.
        lost = _any(hidden, entering) | (not _shows(eqn, entering, program)) & _any(
            jumped, entering
        )
        for name in eqn.outputs:
            largest = jnp.max(jnp.stack([usual.get(name, jnp.zeros(())), *sizes]))
            hidden[name] = lost
            jumped[name] = lost | _differ(low[name], high[name], _ROUNDING * largest)
    return jumped


def _shows(eqn: Equation, entering: list[int], program: Program) -> bool:
    """Whether the output of an operation shows that one entry of what enters has jumped."""
    if eqn.name in _MOVING or elementwise.known(eqn):
        return True
    if eqn.name == "cond" and entering == [eqn.inputs[0]]:
        return True
    return all(int(np.prod(program.shapes[a])) <= _FEW for a in entering)


def _any(flags: dict[int, Any], names: Any) -> Any:
    return jnp.any(jnp.stack([jnp.zeros((), bool), *(flags[a] for a in names if a in flags)]))


def _real(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def _size(x: Any) -> Any:
    """The largest entry that is finite."""
    return jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0), initial=0.0)


def _differ(a: Any, b: Any, rounding: Any) -> Any:
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.extended):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return jnp.any(a != b)
    far = jnp.abs(a - b) > _JUMP * (jnp.abs(a) + jnp.abs(b)) + rounding
    return jnp.any(far | (jnp.isfinite(a) != jnp.isfinite(b)))
