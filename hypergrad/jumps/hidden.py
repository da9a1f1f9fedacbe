"""Where a function jumps in an input, so that no derivative of it tells the whole change.

A comparison, a rounding, an index or a `stop_gradient` has the derivative zero, whatever it does to
the value. Of `where(u > rate, x / (1 - rate), 0)` automatic differentiation sees the division and
not the mask: what it returns is the derivative of something else. Such places are found here in the
traced program, and followed to its outputs.

A decision between two branches that agree where it flips loses nothing: a hinge, a Huber loss, a
soft threshold, `jax.nn.elu`, gradient clipping. Whether they agree is tested by evaluating both on
random points of the boundary, and if that is not enough (sorting, neighbours, branches) by running
the program across it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.jumps.boundary import jumps
from hypergrad.jumps.crossing import seen_to_jump, stop_seen_to_hide
from hypergrad.jumps.neighbourhood import Neighbourhood
from hypergrad.jumps.program import (
    CONTROL,
    Equation,
    Program,
    continuous_inputs,
    flat,
    inner_program,
)

_DECISIONS = dict.fromkeys(("lt", "le", "gt", "ge", "lt_to", "le_to"), "a comparison")
_DECISIONS["sign"] = "a sign"
_STEPS = {"floor": "a rounding", "ceil": "a rounding", "round": "a rounding"}
# Of discrete outputs; without a name here the operation's own is said.
_DISCRETE = {
    "SearchSorted": "a comparison",
    "argmax": "an argmax",
    "argmin": "an argmin",
    "convert_element_type": "a truncation to integers",
    "sort": "a sorting order",
    "top_k": "a sorting order",
}
# Their discrete outputs change on a set without volume (equality of numbers that are no ties), or
# the value does not depend on them (the pivots of a factorisation).
_HARMLESS = frozenset({"eq", "ne", "is_finite", "lu", "lu_pivots_to_permutation"})


class Taint(NamedTuple):
    """What a value owes to the inputs that are followed.

    - `reads`: numbers of the inputs that it depends on, differentiably at least in part.
    - `blind`: pairs of such a number and the operation that hides a part of the dependence.
    """

    reads: frozenset[int] = frozenset()
    blind: frozenset[tuple[int, str]] = frozenset()

    def __or__(self, other: "Taint") -> "Taint":  # type: ignore[override]
        return Taint(self.reads | other.reads, self.blind | other.blind)

    def hidden(self, reason: str, *, whole: bool = True) -> "Taint":
        """The taint after an operation without derivative (`whole`), or one that jumps as well."""
        blind = self.blind | {(number, reason) for number in self.reads}
        return Taint(frozenset() if whole else self.reads, blind)


def hidden_reads(program: jax.extend.core.ClosedJaxpr, inputs: range) -> list[tuple[str, ...]]:
    """For each of the inputs: the operations that hide a part of what the outputs owe to it."""
    taints = [
        Taint(frozenset({i}) if i in inputs else frozenset())
        for i in range(len(program.jaxpr.invars))
    ]
    outputs = _flow(flat(program), taints)
    blind = frozenset[tuple[int, str]]().union(*(taint.blind for taint in outputs))
    return [tuple(sorted({why for number, why in blind if number == i})) for i in inputs]


def _flow(program: Program, taints: list[Taint]) -> list[Taint]:
    """The taints of the outputs of a program."""
    known = dict(zip(program.inputs, taints, strict=True))
    followed = frozenset(name for name, taint in known.items() if taint.reads)
    around = Neighbourhood(program, followed)

    def of(atom: object) -> Taint:
        return known.get(atom, Taint()) if isinstance(atom, int) else Taint()

    def hides(equation: Equation, reads: frozenset[int], otherwise: bool = True) -> bool:
        """Whether a discrete value hides something of the outputs; `otherwise` if nobody knows."""
        proven = {number for taint in known.values() for number, _ in taint.blind}
        if otherwise and reads <= proven:
            return True
        seen = seen_to_jump(program, followed, equation)
        return otherwise if seen is None else seen

    def stops(equation: Equation) -> bool:
        """Whether a `stop_gradient` changes the derivative of the outputs."""
        return stop_seen_to_hide(program, followed, equation)

    for equation in program.equations:
        entering = [of(atom) for atom in equation.inputs]
        taints = _through(equation, entering, around, hides, stops)
        known |= dict(zip(equation.outputs, taints, strict=True))
    return [of(atom) for atom in program.outputs]


def _through(
    equation: Equation,
    entering: list[Taint],
    around: Neighbourhood,
    hides: Callable,
    stops: Callable,
) -> list[Taint]:
    smooth = continuous_inputs(equation.traced)
    taint = _union(entering[:smooth]) | _union(entering[smooth:]).hidden("a comparison")
    name = equation.name
    if not (taint.reads or taint.blind):
        return [taint] * len(equation.outputs)
    if name in CONTROL:
        leaving = _control(equation, entering)
        both = zip(equation.avals, leaving, strict=True)
        found = [aval for aval, t in both if not t.blind <= taint.blind]
        # A search by bisection: what its place hides is seen in what is done with it.
        if not found or any(map(_continuous, found)) or hides(equation, taint.reads):
            return leaving
        return [Taint(t.reads, t.blind & taint.blind) for t in leaving]
    if name == "custom_linear_solve":
        # The derivative is that of the product and of the right-hand side, whatever solves it.
        lengths = equation.params["const_lengths"]
        others = lengths.vecmat + lengths.solve + lengths.transpose_solve
        taint = _union(entering[: lengths.matvec] + entering[lengths.matvec + others :])
        return [taint] * len(equation.outputs)
    if name in _DECISIONS:
        if not taint.reads:
            return [taint]
        seen = jumps(equation, around) and hides(equation, taint.reads)
        return [taint.hidden(_DECISIONS[name]) if seen else Taint(blind=taint.blind)]
    if name in _STEPS:
        seen = bool(taint.reads) and hides(equation, taint.reads)
        return [taint.hidden(_STEPS[name]) if seen else Taint(blind=taint.blind)]
    if name in ("eq", "ne") and any(map(around.ties, equation.inputs)):
        seen = bool(taint.reads) and hides(equation, taint.reads, otherwise=False)
        return [taint.hidden("a comparison") if seen else Taint(blind=taint.blind)]
    if name == "stop_gradient":
        seen = bool(taint.reads) and not around.shift_by_maximum(equation) and stops(equation)
        return [taint.hidden("a stop_gradient") if seen else Taint(blind=taint.blind)]
    if name == "rem":
        # Between its steps it is continuous, and so is all of it where the outputs have its period.
        seen = bool(taint.reads) and hides(equation, taint.reads)
        return [taint.hidden("a remainder", whole=False) if seen else taint]
    if name == "sort":
        return _sorted(equation, entering, hides)
    reason = _DISCRETE.get(name, f"the operation `{name}`")
    if name == "dynamic_update_slice" or name.startswith("scatter"):
        reason = "an index"
    lost = Taint(blind=taint.blind)
    if name not in _HARMLESS and not all(map(_continuous, equation.avals)) and taint.reads:
        # Of other operations nobody knows that their output is constant between its steps.
        seen = name not in _DISCRETE or hides(equation, taint.reads)
        lost = taint.hidden(reason) if seen else lost
    return [taint if _continuous(aval) else lost for aval in equation.avals]


def _sorted(equation: Equation, entering: list[Taint], hides: Callable) -> list[Taint]:
    """The first key is continuous; whatever else is sorted along with it changes its place."""
    order = _union(entering[: equation.params["num_keys"]])
    first, *others = entering
    if others and order.reads and hides(equation, order.reads):
        order = order.hidden("a sorting order")
    moved = Taint(blind=order.blind)
    return [first, *(moved | own for own in others)]


def _union(taints: list[Taint]) -> Taint:
    """What a value owes that is made of several."""
    union = Taint()
    for taint in taints:
        union |= taint
    return union


def _continuous(aval: jax.core.AbstractValue) -> bool:
    dtype = getattr(aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, np.inexact)


def _scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many of a scan's arguments are constants, and how many are carried."""
    if "ft_in" in params:  # JAX 0.12
        constants, carry, _ = params["ft_in"].unpack()
        return len(constants), len(carry)
    return params["num_consts"], params["num_carry"]


def _control(equation: Equation, entering: list[Taint]) -> list[Taint]:
    params = equation.params
    if equation.name == "cond":
        outputs = [Taint()] * len(equation.outputs)
        for branch in params["branches"]:
            into = _flow(inner_program(branch), entering[1:])
            outputs = [a | b for a, b in zip(outputs, into, strict=True)]
        # The number of the branch is discrete: what hides in it is known already.
        return [Taint(o.reads, o.blind | entering[0].blind) for o in outputs]
    if equation.name == "scan":
        body = inner_program(params["jaxpr"])
        constants, count = _scan_counts(params)
        fixed, carry = entering[:constants], entering[constants : constants + count]
        rest = entering[constants + count :]
        while True:
            outputs = _flow(body, [*fixed, *carry, *rest])
            grown = [a | b for a, b in zip(carry, outputs[:count], strict=True)]
            if grown == carry:
                return [*carry, *outputs[count:]]
            carry = grown
    first, second = params["cond_nconsts"], params["body_nconsts"]
    tested, fixed = entering[:first], entering[first : first + second]
    carry = entering[first + second :]
    body, test = inner_program(params["body_jaxpr"]), inner_program(params["cond_jaxpr"])
    while True:
        outputs = _flow(body, [*fixed, *carry])
        (decision,) = _flow(test, [*tested, *carry])
        # How often the body runs is discrete, too.
        grown = [
            Taint(a.reads | b.reads, a.blind | b.blind | decision.blind)
            for a, b in zip(carry, outputs, strict=True)
        ]
        if grown == carry:
            return carry
        carry = grown
