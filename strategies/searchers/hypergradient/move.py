"""What a suggestion of the hypergradient searcher remembers about itself."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

_VERSION = 2


@dataclass(frozen=True)
class Move:
    """A move, as it stands in `suggestion.note`.

    - `move`: `"start"` (a new place), `"step"` (of a chain), `"change"` (the incumbent, changed in
      what has no gradient) or `"model"` (the choice of a Gaussian process).
    - `chain`: number of the suggestion that the chain began with, this one's if it begins one.
    - `way`: the mover, and the way in which it found the place: what a record is kept of.
    - `level`: value of the incumbent, or of the chain's best point, which the move is to improve.
    - `promise`: gain below the level that was expected.
    - `base`: name of the point that a step begins at, or that a change began from.
    - `parent`: chain that was changed.
    - `length`, `decrease`, `cut`: of a step: its largest entry, the decrease that the model
      predicted, and what the region was cut by.
    """

    move: str
    chain: int
    way: str = ""
    level: float | None = None
    promise: float = 0.0
    base: int | None = None
    parent: int | None = None
    length: float = 0.0
    decrease: float = 0.0
    cut: float = 1.0

    def note(self) -> dict[str, Any]:
        """As JSON values; what is `None` is left out."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {"version": _VERSION, **known}

    @classmethod
    def of(cls, note: Mapping[str, Any]) -> "Move | None":
        """The move of a note; `None` for a note of another version or searcher."""
        if note.get("version") != _VERSION:
            return None
        known = {item.name: note[item.name] for item in fields(cls) if item.name in note}
        try:
            move = cls(**known)
        except TypeError:
            return None
        numbers = (move.chain, move.promise, move.length, move.decrease, move.cut)
        return move if all(isinstance(value, int | float) for value in numbers) else None
