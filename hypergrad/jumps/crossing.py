"""Whether a decision loses nothing, seen by running the program to where the decision flips.

A second look, for what is not elementwise: a projection that sorts and counts, an interpolation
between neighbours, a branch. The inputs are drawn at random, and one hyperparameter is moved.

- Where the decision's output changes, all that follows is computed on both sides. A value that
  differs there has jumped; the function is continuous if its outputs have not.
- Many small steps are no jumps that could be seen, and make a slope that no derivative tells: along
  the way the derivative must agree with differences.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hypergrad.jumps import elementwise
from hypergrad.jumps.program import CONTROL, Constant, Equation, Program

# Programs with more entries in all their values are not run.
_ENTRIES = 100_000
_DRAWS = 3
# What a drawn hyperparameter is multiplied with, and where no decision flips beyond zero.
_SCALE = np.geomspace(1.03e-2, 1e2, 64)
_BEYOND = np.append(-_SCALE[:0:-1], _SCALE[0])
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
# Differences are taken over these shares of a number, of which the smaller may resolve what waves
# over the larger. At kinks they differ from the derivative, which are few: it must agree with three
# of four, to a percent and the rounding of a difference.
_DIFFERENCES, _AGREES, _PERCENT = (0.02, 0.002), 0.75, 0.01
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
    if program.entries() > _ENTRIES:
        return None
    draws = _Draws(program, followed)
    with jax.ensure_compile_time_eval():
        looks = {moved: jax.jit(partial(_look, draws, site, moved)) for moved in followed}
        for scales in (_SCALE, _BEYOND):
            met = 0
            for look in looks.values():
                for drawn in draws:
                    try:
                        seen = look(scales, *drawn)
                        found, jumped, agrees = map(np.asarray, seen)
                    # Of an operation, or a user's callback in it, on numbers that were drawn.
                    except (TypeError, ValueError, NotImplementedError, RuntimeError):
                        return None
                    if np.any(found) and (np.any(found & jumped) or not agrees):
                        return True
                    met += int(np.sum(found))
            if met >= _ENOUGH:
                return False
    return None


def stop_seen_to_hide(program: Program, followed: frozenset[int], site: Equation) -> bool:
    """Whether the derivative of the outputs is another one without a `stop_gradient`.

    It is the same where what passes it does not matter in the end: a maximum that is subtracted and
    added again, a branch that is not taken.
    """
    if program.entries() > _ENTRIES:
        return True
    draws = _Draws(program, followed)

    def slopes(moved: int, opened: int | None, values: list[Any], turned: list[Any]) -> list[Any]:
        given = draws.given(values)

        def along(at: Any) -> list[Any]:
            values = draws.run({**given, moved: at}, turned, opened)
            return [values[a] for a in program.outputs if isinstance(a, int) and _real(values[a])]

        return jax.jvp(along, (given[moved],), (given[moved],))[1]

    with jax.ensure_compile_time_eval():
        for moved in followed:
            both = jax.jit(
                lambda *drawn, moved=moved: [
                    slopes(moved, opened, *drawn) for opened in (None, site.outputs[0])
                ]
            )
            for drawn in draws:
                try:
                    told, whole = both(*drawn)
                except (TypeError, ValueError, NotImplementedError, RuntimeError):
                    return True
                sizes = [
                    _ROUNDING * (_size(a) + _size(b)) for a, b in zip(told, whole, strict=True)
                ]
                if any(map(bool, map(_differ, told, whole, sizes))):
                    return True
    return False


class _Draws:
    """Random numbers for the inputs of a program, and its values for them.

    Each draw is a list of values, and one of the truths asked of data (a mask, a label) that are
    turned: true or false whatever numbers stand for the data. In the first draws none is.
    """

    def __init__(self, program: Program, followed: frozenset[int]) -> None:
        self.program, self.followed = program, followed
        # The inputs, and constants of a program that is itself traced within another.
        atoms = (a for eqn in program.equations for a in eqn.inputs if isinstance(a, Constant))
        traced = (a for a in atoms if isinstance(a.given, jax.core.Tracer))
        self.names = list(dict.fromkeys([*program.inputs, *traced]))
        asked = program.depending(set(self.names) - followed) - program.depending(followed)
        self.asked = sorted(
            name for name in asked if isinstance(name, int) and program.dtypes[name] == np.bool_
        )

    def __iter__(self) -> Iterator[tuple[list[Any], list[Any]]]:
        for seed in range(2 * _DRAWS if self.asked else _DRAWS):
            rng = np.random.default_rng(seed)
            values = [self._draw(name, rng, seed) for name in self.names]
            shapes = [self.program.shapes[name] for name in self.asked]
            yield values, [(seed >= _DRAWS) & (rng.random(shape) < 0.5) for shape in shapes]

    def _draw(self, name: Any, rng: np.random.Generator, seed: int) -> Any:
        """Hyperparameters and lone numbers are positive; arrays are anything."""
        if isinstance(name, Constant):
            shape, dtype = name.given.shape, name.given.dtype
        else:
            shape, dtype = self.program.shapes[name], self.program.dtypes[name]
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(seed, impl=dtype._impl.name), shape)
        if jnp.issubdtype(dtype, jnp.inexact):
            positive = name in self.followed or np.prod(shape) == 1
            value = rng.uniform(0.05, 0.95, shape) if positive else rng.normal(size=shape)
            return jnp.asarray(value, dtype)
        # Words of a key may be any number, labels and flags not.
        below = 2**32 if dtype == np.uint32 else 2
        return jnp.asarray(rng.integers(0, below, shape), dtype)

    def given(self, values: list[Any]) -> dict[Any, Any]:
        """The values by their names."""
        return dict(zip(self.names, values, strict=True))

    def run(
        self, given: dict[Any, Any], turned: list[Any], opened: int | None = None
    ) -> dict[Any, Any]:
        """All values of the program.

        **Arguments:** `opened`: of a `stop_gradient` that is left out.
        """
        atoms = (a for eqn in self.program.equations for a in eqn.inputs)
        values = {a: a.given for a in atoms if isinstance(a, Constant)} | given
        turning = dict(zip(self.asked, turned, strict=True))
        for eqn in self.program.equations:
            inputs = [values[a] for a in eqn.inputs]
            bound = eqn.traced.primitive.get_bind_params(eqn.params)
            # Before JAX 0.8 a pair, with the functions of operations that are written out here.
            functions, params = bound if isinstance(bound, tuple) else ((), bound)
            results = inputs
            if opened not in eqn.outputs:
                results = eqn.traced.primitive.bind(*functions, *inputs, **params)
                results = results if eqn.traced.primitive.multiple_results else [results]
            for name, result in zip(eqn.outputs, results, strict=True):
                values[name] = result ^ turning[name] if name in turning else result
        return values


def _look(
    draws: _Draws,
    site: Equation,
    moved: int,
    scales: Any,
    values: list[Any],
    turned: list[Any],
) -> tuple:
    """What is met along one input.

    **Returns:** for each crossing, whether it is one, with finite outputs, and whether an output
    jumps there; then whether derivative and differences agree.
    """
    program, given = draws.program, draws.given(values)
    outputs = {a for a in program.outputs if isinstance(a, int)}

    def at(scale: Any) -> dict[Any, Any]:
        scaled = given[moved] * scale.astype(given[moved].dtype)
        return draws.run({**given, moved: scaled}, turned)

    def decision(scale: Any) -> Any:
        return _decided(site, at(scale))

    def returned(scale: Any) -> list[Any]:
        values = at(scale)
        return [values[a] for a in outputs if _real(values[a])]

    def survey(scale: Any) -> tuple:
        values = at(scale)
        sizes = {a: _size(values[a]) for a in program.shapes if _real(values[a])}
        return _decided(site, values), sizes, _agree(returned, scale)

    grid = jnp.asarray(scales, jnp.result_type(float))
    outcomes, sizes, agree = lax.map(survey, grid)
    usual = {name: jnp.quantile(size, _USUAL) for name, size in sizes.items()}
    outcomes = outcomes.reshape(len(scales), -1)
    flips = jnp.any(outcomes[1:] != outcomes[:-1], axis=1)

    def crossing(number: Any) -> tuple:
        below = decision(grid[number])

        def halve(_: Any, ends: tuple) -> tuple:
            low, high = ends
            middle = (low + high) / 2
            same = jnp.all(decision(middle) == below)
            return jnp.where(same, middle, low), jnp.where(same, high, middle)

        low, high = lax.fori_loop(0, _HALVINGS, halve, (grid[number], grid[number + 1]))
        sides = at(low - _APART * jnp.abs(low)), at(high + _APART * jnp.abs(high))
        finite = [jnp.all(jnp.isfinite(sides[0][a])) for a in outputs if _real(sides[0][a])]
        met = jnp.all(jnp.stack([flips[number], *finite]))
        return met, _any(_jumped(program, *sides, usual), outputs)

    return *lax.map(crossing, jnp.arange(len(flips))), jnp.mean(agree) >= _AGREES


def _decided(site: Equation, values: dict[Any, Any]) -> Any:
    """The discrete value of an operation: its output, or the step that a remainder is on.

    Of a loop or a branch all outputs that are discrete.
    """
    if site.name in CONTROL:
        found = [values[a] for a in site.outputs if not _real(values[a])]
        return jnp.concatenate([value.ravel().astype(int) for value in found])
    if site.name == "rem":
        dividend, divisor = (values[a] for a in site.inputs)
        return jnp.trunc(dividend / divisor)
    return values[site.outputs[-1] if site.name in ("sort", "top_k") else site.outputs[0]]


def _agree(function: Any, scale: Any) -> Any:
    """Whether the derivative tells the difference to a number close by; what is not finite does."""
    steps = scale * jnp.asarray(_DIFFERENCES, scale.dtype)
    points = scale + steps[:, None] * jnp.asarray([0, 0.5, 1], scale.dtype)
    one = jnp.ones_like(scale)
    values, slopes = lax.map(lambda at: jax.jvp(function, (at,), (one,)), points.ravel())
    agree = jnp.ones(len(_DIFFERENCES), bool)
    for value, slope in zip(values, slopes, strict=True):
        a, _, b = jnp.moveaxis(value.reshape(*points.shape, -1), 1, 0)
        p, middle, q = jnp.moveaxis(slope.reshape(*points.shape, -1), 1, 0)
        # By Simpson's rule, which is exact enough for a wave of a few steps.
        difference, told = b - a, (p + 4 * middle + q) / 6 * steps[:, None]
        tolerance = _PERCENT * (jnp.abs(difference) + jnp.abs(told)) + _ROUNDING * jnp.abs(a)
        agree &= jnp.all(~(jnp.abs(difference - told) > tolerance), axis=1)
    return jnp.any(agree)


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
