"""The places of a `param_space`, and the way between Ray's configurations and ours."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strategies.space import SearchSpace


class Node(ABC):
    """One place in a `param_space`, and how its values translate."""

    @abstractmethod
    def fill(self, flat: Mapping[str, Any]) -> Any:
        """The value that Ray expects here, from our paths and values."""

    @abstractmethod
    def read(self, value: Any, flat: dict[str, Any]) -> None:
        """Collect our paths and values from what stands here in a trial's config."""

    @abstractmethod
    def expect(self, value: Any, path: str) -> None:
        """Raise a `ValueError` for what a user gives here and `read` would pass over."""


@dataclass(frozen=True)
class Leaf(Node):
    """One hyperparameter."""

    path: str
    #: Whether `None` is a value, and not the lack of one.
    optional: bool = False

    def fill(self, flat: Mapping[str, Any]) -> Any:
        """See `Node`."""
        return flat[self.path]

    def read(self, value: Any, flat: dict[str, Any]) -> None:
        """See `Node`."""
        if value is not None or self.optional:
            flat[self.path] = value

    def expect(self, value: Any, path: str) -> None:
        """See `Node`."""
        if value is None and not self.optional:
            raise ValueError(f"{path!r}: expected a value, received None")


@dataclass(frozen=True)
class Fixed(Node):
    """Something that is not searched: a constant, or a placeholder that Ray resolves later."""

    value: Any

    def fill(self, flat: Mapping[str, Any]) -> Any:
        """See `Node`."""
        return self.value

    def read(self, value: Any, flat: dict[str, Any]) -> None:
        """See `Node`."""

    def expect(self, value: Any, path: str) -> None:
        """See `Node`."""
        if not _fits(self, value):
            raise ValueError(f"{path!r}: expected the constant {self.value!r}, received {value!r}")


@dataclass(frozen=True)
class Group(Node):
    """A dict. Ray merges ours into its own, so at the top only what is searched is filled in."""

    nodes: Mapping[Any, Node]
    complete: bool

    def fill(self, flat: Mapping[str, Any]) -> Any:
        """See `Node`."""
        return {
            key: node.fill(flat)
            for key, node in self.nodes.items()
            if self.complete or _searched(node)
        }

    def read(self, value: Any, flat: dict[str, Any]) -> None:
        """See `Node`."""
        if isinstance(value, Mapping):
            for key, node in self.nodes.items():
                if key in value:
                    node.read(value[key], flat)

    def expect(self, value: Any, path: str) -> None:
        """See `Node`."""
        start = f"{path}/" if path else ""
        if not isinstance(value, Mapping):
            raise ValueError(f"{path!r}: expected a mapping, received {value!r:.80}")
        for key, item in value.items():
            if key not in self.nodes:
                raise ValueError(
                    f"{start + str(key)!r}: expected one of the keys {list(self.nodes)}, "
                    f"received {item!r:.80}"
                )
            self.nodes[key].expect(item, f"{start}{key}")


@dataclass(frozen=True)
class Row(Node):
    """A list or tuple with hyperparameters inside; Ray replaces it as a whole."""

    nodes: Sequence[Node]
    kind: type

    def fill(self, flat: Mapping[str, Any]) -> Any:
        """See `Node`."""
        return self.kind(node.fill(flat) for node in self.nodes)

    def read(self, value: Any, flat: dict[str, Any]) -> None:
        """See `Node`."""
        if isinstance(value, list | tuple | np.ndarray):
            for node, item in zip(self.nodes, value, strict=False):
                node.read(item, flat)

    def expect(self, value: Any, path: str) -> None:
        """See `Node`."""
        if not isinstance(value, list | tuple | np.ndarray) or len(value) != len(self.nodes):
            raise ValueError(f"{path!r}: expected {len(self.nodes)} values, received {value!r:.80}")
        for i, (node, item) in enumerate(zip(self.nodes, value, strict=True)):
            node.expect(item, f"{path}/{i}")


@dataclass(frozen=True)
class Options(Node):
    """A `tune.choice` whose options have hyperparameters of their own."""

    path: str
    nodes: Sequence[Node]

    def fill(self, flat: Mapping[str, Any]) -> Any:
        """See `Node`."""
        return self.nodes[int(flat[f"{self.path}/kind"])].fill(flat)

    def read(self, value: Any, flat: dict[str, Any]) -> None:
        """See `Node`."""
        kind = f"{self.path}/kind"
        if kind not in flat:
            # An option is recognised by what does not contradict it.
            fitting = (i for i, node in enumerate(self.nodes) if _fits(node, value))
            if (index := next(fitting, None)) is None:
                return
            flat[kind] = str(index)
        self.nodes[int(flat[kind])].read(value, flat)

    def expect(self, value: Any, path: str) -> None:
        """See `Node`."""
        for node in self.nodes:
            if _fits(node, value):
                return node.expect(value, path)
        raise ValueError(f"{path!r}: expected one of its options, received {value!r:.80}")


def _options(node: Node | None, flat: Mapping[str, Any]) -> Iterator[Options]:
    """The choices with options of their own that a configuration has."""
    if isinstance(node, Group):
        for child in node.nodes.values():
            yield from _options(child, flat)
    elif isinstance(node, Row):
        for child in node.nodes:
            yield from _options(child, flat)
    elif isinstance(node, Options):
        yield node
        yield from _options(node.nodes[int(flat[node.path + "/kind"])], flat)


def _searched(node: Node) -> bool:
    if isinstance(node, Group):
        return any(_searched(child) for child in node.nodes.values())
    return not isinstance(node, Fixed)


def _fits(node: Node, value: Any) -> bool:
    """Whether a value may have come from a node."""
    if isinstance(node, Fixed):
        # What stands for an object has been resolved in a trial's config: it tells nothing.
        return not is_plain(node.value) or (
            type(node.value) is type(value) and bool(node.value == value)
        )
    if isinstance(node, Group):
        return isinstance(value, Mapping) and all(
            key in node.nodes and _fits(node.nodes[key], item) for key, item in value.items()
        )
    if isinstance(node, Row):
        return isinstance(value, list | tuple) and len(value) == len(node.nodes)
    return not isinstance(value, Mapping)


@dataclass(frozen=True)
class Layout:
    """A `param_space` read: our space, and the way between its configurations and Ray's."""

    space: SearchSpace
    root: Group | None

    def to_ray(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What `suggest` returns for a configuration: nested, complete where Ray does not merge."""
        if self.root is None:
            return copy.deepcopy(dict(config))
        filled = self.root.fill(self.space.flatten(config))
        assert isinstance(filled, dict)
        return copy.deepcopy(filled)

    def from_ray(
        self, config: Mapping[str, Any], of: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Paths and values of what is known in a (possibly partial) config of Ray's.

        With `of`, the config that it belongs to in our form, options of choices are those of `of`:
        a gradient does not say which option it is of.
        """
        kinds = {} if of is None else self._kinds(of)
        flat: dict[str, Any] = dict(kinds)
        nested = _nested(config)
        if self.root is None:
            flat |= {p: v for p, v in self.space.paths(nested) if p in self.space.domains}
        else:
            self.root.read(nested, flat)
        return {path: value for path, value in flat.items() if path not in kinds}

    def point(self, config: Any) -> dict[str, Any]:
        """Paths and values of a point that a user gives, nested or flat, complete or partial.

        **Raises:** `ValueError` naming the key of what cannot be meant: one that does not exist, a
        constant that is changed, an option that is none.
        """
        nested = _nested(config)
        if self.root is None:
            return nested
        self.root.expect(nested, "")
        return self.from_ray(config)

    def _kinds(self, config: Mapping[str, Any]) -> dict[str, Any]:
        flat = self.space.flatten(config)
        return {
            node.path + "/kind": flat[node.path + "/kind"] for node in _options(self.root, flat)
        }


def _nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flat keys (`"a/b"`), nested ones, and mixtures, all to a nested dict."""
    if not isinstance(config, Mapping):
        raise ValueError(f"config: expected a mapping, received {config!r:.80}")
    nested: dict[str, Any] = {}
    for key, value in config.items():
        *groups, name = str(key).split("/")
        at = nested
        for group in groups:
            at = at.setdefault(group, {})
        value = _nested(value) if isinstance(value, Mapping) else value
        if isinstance(value, dict) and isinstance(at.get(name), dict):
            at[name].update(value)
        else:
            at[name] = value
    return nested


def is_plain(value: Any) -> bool:
    """Whether a constant is data, not an object that Ray resolves."""
    if isinstance(value, list):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
