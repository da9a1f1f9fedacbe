"""What lies around one decision in a traced program, evaluated on random numbers.

Around a decision (`x > y`) all is elementwise for a while. What enters that neighbourhood from
further away is replaced by samples; what leaves it can then be computed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from hypergrad.jumps import elementwise
from hypergrad.jumps.elementwise import SHAPING
from hypergrad.jumps.program import Constant, Equation, Program

_DEPTH = 60  # of one neighbourhood, in operations
# Their outputs are constants, or equal to one of many, over whole regions.
_TYING = frozenset({"max", "min", "clamp", "select_n", "reduce_max", "reduce_min", "sort"})


class Neighbourhood:
    """The definitions and uses of a program's values, and their evaluation on random numbers.

    **Arguments:**

    - `program`: without its calls.
    - `followed`: those of its inputs that are, or depend on, a hyperparameter.
    """

    def __init__(self, program: Program, followed: frozenset[int]) -> None:
        self.program = program
        self._followed = followed
        self.defined = {name: eqn for eqn in program.equations for name in eqn.outputs}
        self.uses: dict[Any, list[Equation]] = {}
        placements: dict[Any, set] = {}
        for eqn in program.equations:
            for atom in eqn.inputs:
                if isinstance(atom, int):
                    self.uses.setdefault(atom, []).append(eqn)
            if eqn.name == "broadcast_in_dim" and not self._single(eqn.inputs[0]):
                dims = tuple(eqn.params["broadcast_dimensions"])
                placements.setdefault(eqn.inputs[0], set()).add(dims)
        # Of `x[:, None] - x[None, :]` the two sides are not the same number.
        self._crossed = {name for name, dims in placements.items() if len(dims) > 1}
        self._moving = program.depending(followed)

    def elementwise(self, eqn: Equation) -> bool:
        """Whether each entry of the output needs the same entry of the inputs only."""
        crossed = eqn.name in SHAPING and eqn.inputs[0] in self._crossed
        return elementwise.known(eqn) and not crossed

    def leaving(self, name: int) -> list[int]:
        """The values elementwise in `name` that something else takes up, or the program returns."""
        reached, leaving = {name}, []
        pending = [name]
        while pending:
            current = pending.pop()
            uses = self.uses.get(current, [])
            if current in self.program.outputs or not all(map(self.elementwise, uses)):
                leaving.append(current)
            for eqn in uses:
                if self.elementwise(eqn) and eqn.outputs[0] not in reached:
                    reached.add(eqn.outputs[0])
                    pending.append(eqn.outputs[0])
        return leaving

    def value(self, atom: Any, given: dict[Any, Any], draw: Callable, depth: int = _DEPTH) -> Any:
        """The value of an atom where those of `given` are known; `draw` makes what is missing."""
        if isinstance(atom, Constant):
            if atom.value is None and atom not in given:
                given[atom] = draw(atom)
            return given[atom] if atom.value is None else atom.value
        if atom in given:
            return given[atom]
        eqn = self.defined.get(atom)
        if eqn is None or not depth or self._entering(eqn):
            key = self._key(atom, eqn)
            if key not in given:
                given[key] = draw(key)
            return given[key]
        values = [self.value(a, given, draw, depth - 1) for a in eqn.inputs]
        result = elementwise.apply(eqn, values)
        given[atom] = result
        return result

    def ties(self, atom: Any) -> bool:
        """Whether a value may equal another one over a whole region, as that of `max(x, 0)`."""
        eqn = self.defined.get(atom) if isinstance(atom, int) else None
        if eqn is None:
            return False
        return eqn.name in _TYING or (self.elementwise(eqn) and any(map(self.ties, eqn.inputs)))

    def shift_by_maximum(self, eqn: Equation) -> bool:
        """Whether a `stop_gradient` holds a maximum that is subtracted and added again.

        As in `logsumexp` and `softmax`, whose value does not depend on what they shift by.
        """
        return self._from_maximum(eqn.inputs[0]) and self._shifts(eqn.outputs[0])

    def _from_maximum(self, atom: Any) -> bool:
        """`max(-inf, m)`, `where(isfinite(m), m, 0)` and so on, of a maximum `m` over an axis."""
        eqn = self.defined.get(atom) if isinstance(atom, int) else None
        if eqn is None:
            return False
        if eqn.name in ("reduce_max", "pmax"):
            return True
        if eqn.name not in (*SHAPING, "max", "select_n", "convert_element_type", "copy"):
            return False
        parts = eqn.inputs[1:] if eqn.name == "select_n" else eqn.inputs
        varying = [part for part in parts if not self._fixed(part)]
        return bool(varying) and all(map(self._from_maximum, varying))

    def _fixed(self, atom: Any) -> bool:
        """A constant, in whatever shape."""
        if isinstance(atom, Constant):
            return True
        eqn = self.defined.get(atom)
        return eqn is not None and eqn.name in SHAPING and self._fixed(eqn.inputs[0])

    def _shifts(self, name: int) -> bool:
        for eqn in self.uses.get(name, []):
            if eqn.name in SHAPING or eqn.name == "convert_element_type":
                if not self._shifts(eqn.outputs[0]):
                    return False
            elif eqn.name == "sub":
                if eqn.inputs[0] == name:
                    return False
            elif eqn.name != "add":
                return False
        return True

    def entering(self, key: Any) -> bool:
        """Whether a value comes from outside of all neighbourhoods."""
        return self._entering(self.defined.get(key) if isinstance(key, int) else None)

    def _entering(self, eqn: Equation | None) -> bool:
        if eqn is None or not self.elementwise(eqn):
            return True
        # What is asked of data may be true or not, whatever numbers stand for the data.
        (output,) = eqn.outputs
        return self.truth(output) and output not in self._moving

    def truth(self, key: Any) -> bool:
        """Whether a value is true or false."""
        atom = key if isinstance(key, int | Constant) else key[1]
        dtype = atom.dtype if isinstance(atom, Constant) else self.program.dtypes[atom]
        return dtype == np.bool_

    def positive(self, key: Any) -> bool:
        """Whether a value that enters is like a hyperparameter."""
        return key in self._followed or (isinstance(key, int) and self._single(key))

    def _single(self, atom: Any) -> bool:
        return isinstance(atom, Constant) or int(np.prod(self.program.shapes[atom])) == 1

    def _key(self, atom: int, eqn: Equation | None) -> Any:
        """One name for a value that is computed in the same way twice."""
        if eqn is None or eqn.name not in (*SHAPING, "transpose"):
            return atom
        return eqn.name, eqn.inputs[0], str(eqn.params)
