"""A Griffe extension: classes derived from `equinox.Module` are shown as the dataclasses they are.

Their constructors take the fields, so that a page shows each argument with its default.
"""

from typing import Any

import griffe


def _base_paths(cls: griffe.Class) -> list[str]:
    return [base.canonical_path for base in cls.bases if isinstance(base, griffe.Expr)]


def _is_module(cls: griffe.Class) -> bool:
    """Whether `equinox.Module` is among the ancestors."""
    for path in _base_paths(cls):
        if path == "equinox.Module":
            return True
        try:
            base = cls.modules_collection[path]
        except KeyError:
            continue
        if base.is_class and _is_module(base.final_target if base.is_alias else base):
            return True
    return False


def _repeats_a_constructor(cls: griffe.Class) -> bool:
    """Whether it has the line `__init__ = Base.__init__`: a page shows the inherited one."""
    return "__init__" in cls.members and cls.members["__init__"].is_attribute


def _plain_defaults(cls: griffe.Class) -> None:
    """`equinox.field(default=x)` is shown as `x`."""
    for member in cls.members.values():
        value = getattr(member, "value", None)
        if isinstance(value, griffe.ExprCall) and value.canonical_path == "equinox.field":
            given = {a.name: a.value for a in value.arguments if isinstance(a, griffe.ExprKeyword)}
            factory = given.get("default_factory")
            member.value = given.get("default", "..." if factory is not None else None)


class Modules(griffe.Extension):
    """Marks Equinox's modules before Griffe's own extension looks for dataclasses."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """See `griffe.Extension`."""
        rooms = [pkg]
        while rooms:
            room = rooms.pop()
            for member in room.members.values():
                if member.is_alias:
                    continue
                if member.is_module:
                    rooms.append(member)
                elif member.is_class and _repeats_a_constructor(member):
                    del member.members["__init__"]
                elif member.is_class and "__init__" not in member.members and _is_module(member):
                    _plain_defaults(member)
                    value = griffe.ExprName("dataclasses.dataclass")
                    member.decorators.append(griffe.Decorator(value, lineno=0, endlineno=0))
