"""What each array of a model is to its width, read off the shapes of two sizes."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import equinox as eqx
import jax
from jaxtyping import PyTree

Role = Literal["input", "hidden", "output", "vector", "fixed"]

#: Fan-in and fan-out cannot be told apart among more growing axes than these.
_MOST_AXES = 2

#: Axes of a kernel over a plane or more: those of `jax.lax.conv` begin with fan-out and fan-in.
_PLANAR_KERNEL = 4


@dataclass(frozen=True)
class Leaf:
    """One array of a model.

    - `path`: where it is, as `jax.tree_util.keystr` writes it.
    - `role`: `"hidden"` if fan-in and fan-out grow, `"input"` if fan-out alone, `"output"` if
      fan-in alone, `"vector"` for biases and gains that grow, `"fixed"` for what does not grow.
    - `base`: the shape at the base width.
    - `shape`: the shape at the present width.
    - `fan_in`, `fan_out`: the axes that grow, by what they are.
    - `copies`: axes that grow along which there are more arrays of the same kind: experts.
    - `block`: it lies in a block that is repeated when the model is made deeper.
    """

    path: str
    role: Role
    base: tuple[int, ...]
    shape: tuple[int, ...]
    fan_in: tuple[int, ...] = ()
    fan_out: tuple[int, ...] = ()
    block: bool = False
    copies: tuple[int, ...] = ()

    @property
    def grown_in(self) -> float:
        """Fan-in relative to the base."""
        return math.prod(self.shape[axis] / self.base[axis] for axis in self.fan_in)

    @property
    def grown_out(self) -> float:
        """Fan-out relative to the base."""
        return math.prod(self.shape[axis] / self.base[axis] for axis in self.fan_out)

    @property
    def width(self) -> float:
        """The ratio that rules are powers of: of fan-in if that grows, else of fan-out."""
        return self.grown_in if self.fan_in else self.grown_out

    def at(self, shape: tuple[int, ...]) -> "Leaf":
        """The same leaf at another size.

        **Raises:** `ValueError` if an axis differs that did not grow.
        """
        moving = {*self.fan_in, *self.fan_out, *self.copies}
        same = len(shape) == len(self.base) and all(
            axis in moving or here == there
            for axis, (here, there) in enumerate(zip(shape, self.base, strict=True))
        )
        if not same:
            raise ValueError(
                f"{self.path!r}: expected a shape like {self.base} in all axes but "
                f"{sorted(moving)}, received {shape}"
            )
        return replace(self, shape=shape)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, or the shape of one."""
    return all(hasattr(leaf, name) for name in ("shape", "ndim", "dtype"))


def shapes_of(params: PyTree) -> list[tuple[str, Any, Any]]:
    """`(path, array, owner)` of each array in the order of the tree; the owner if equinox's."""
    found = []
    for keys, array in jax.tree_util.tree_flatten_with_path(params)[0]:
        if is_array(array):
            found.append((jax.tree_util.keystr(keys), array, _owner(params, keys)))
    return found


def classify(
    small: PyTree, large: PyTree, roles: Mapping[str, Role], blocks: str | None
) -> tuple[Leaf, ...]:
    """The leaves of a model from two sizes. See `hypergrad.transfer.infer`."""
    first, second = shapes_of(small), shapes_of(large)
    if [path for path, *_ in first] != [path for path, *_ in second]:
        extra = sorted({p for p, *_ in first} ^ {p for p, *_ in second})
        raise ValueError(
            "'large': expected the arrays of 'small' in other shapes, received other arrays: "
            f"{', '.join(extra[:4]) or 'another order'}. A deeper model needs a small one of its "
            "own depth; say depth=(base, target)."
        )
    _refuse_tied(first)
    _refuse_tied(second)
    _known(roles, [path for path, *_ in first])
    leaves = []
    for (path, a, owner), (_, b, _) in zip(first, second, strict=True):
        if a.ndim != b.ndim:
            raise ValueError(f"{path!r}: expected {a.ndim} axes in both sizes, received {b.ndim}")
        axes = [i for i, (x, y) in enumerate(zip(a.shape, b.shape, strict=True)) if x != y]
        smaller = [i for i in axes if b.shape[i] < a.shape[i]]
        if smaller:
            raise ValueError(
                f"{path!r}: expected axes that grow from 'small' to 'large', received "
                f"{tuple(a.shape)} and {tuple(b.shape)}"
            )
        asked = next((role for text, role in roles.items() if re.search(text, path)), None)
        copies: list[int] = []
        if asked == "hidden" and len(axes) > _MOST_AXES:
            copies, axes = axes[:-_MOST_AXES], axes[-_MOST_AXES:]
        role, fan_in, fan_out = _role(path, owner, tuple(a.shape), axes, asked)
        inside = blocks is not None and re.search(blocks, path) is not None
        leaves.append(
            Leaf(
                path,
                role,
                tuple(a.shape),
                tuple(b.shape),
                tuple(fan_in),
                tuple(fan_out),
                inside,
                tuple(copies),
            )
        )
    if not any(leaf.fan_in or leaf.fan_out for leaf in leaves):
        raise ValueError(
            "'large': expected shapes that grow from 'small', received the same shapes. Infer from "
            "two widths, then use `.at(params)` for the base width itself."
        )
    if blocks is not None and not any(leaf.block for leaf in leaves):
        raise ValueError(f"'blocks': expected a pattern of some path, received {blocks!r}")
    return tuple(leaves)


def _role(
    path: str, owner: Any, shape: tuple[int, ...], axes: list[int], asked: Role | None
) -> tuple[Role, list[int], list[int]]:
    """The role of a leaf, and its growing axes as fan-in and fan-out."""
    if not axes:
        return "fixed", [], []
    if asked == "output":
        return asked, axes, []
    if asked in ("input", "vector"):
        return asked, [], axes
    if asked == "fixed":
        # It may grow, but nothing scales: the axes are kept, so that `at` knows them.
        return asked, [], axes
    if len(axes) > _MOST_AXES:
        raise ValueError(
            f"{path!r}: expected at most two axes that grow, received {axes} of {shape}; say what "
            "it is in 'roles' ('hidden' takes the last two, and those before for copies)"
        )
    ins, outs = _orientation(path, owner, len(shape), axes)
    if len(axes) == _MOST_AXES:
        # Fan-out comes last, except where equinox and `lax.conv` write it first.
        reverse = outs is not None and ins is not None and outs < ins
        first, last = axes[::-1] if reverse else axes
        return "hidden", [first], [last]
    if asked == "hidden":
        raise ValueError(
            f"{path!r}: 'roles': expected two growing axes of a hidden leaf, received one"
        )
    if ins is None:
        return "vector", [], axes
    if axes[0] == outs:
        return "input", [], axes
    return "output", axes, []


def _orientation(
    path: str, owner: Any, ndim: int, axes: list[int]
) -> tuple[int | None, int | None]:
    """Which axes are fan-in and fan-out; `None` for a bias or a gain."""
    name = re.findall(r"\w+", path)[-1:] or [""]
    if ndim < _MOST_AXES or (isinstance(owner, eqx.Module) and name[0].startswith("bias")):
        return None, None
    if isinstance(owner, eqx.nn.Linear | eqx.nn.LSTMCell | eqx.nn.GRUCell):
        return ndim - 1, ndim - 2
    if isinstance(owner, eqx.nn.Conv | eqx.nn.ConvTranspose):
        out = ndim - 2 - owner.num_spatial_dims
        return out + 1, out
    if ndim >= _PLANAR_KERNEL and set(axes) <= {0, 1}:
        return 1, 0
    return ndim - 2, ndim - 1


def _owner(tree: Any, keys: tuple) -> Any:
    """The innermost object of equinox on the way to a leaf."""
    owner = tree if isinstance(tree, eqx.Module) else None
    node = tree
    step: Any
    for key in keys[:-1]:
        step = getattr(key, "name", getattr(key, "key", getattr(key, "idx", None)))
        try:
            node = getattr(node, step) if hasattr(key, "name") else node[step]
        except (AttributeError, KeyError, IndexError, TypeError):
            return owner
        owner = node if isinstance(node, eqx.Module) else owner
    return owner


def _refuse_tied(leaves: list[tuple[str, Any, Any]]) -> None:
    seen: dict[int, str] = {}
    for path, array, _ in leaves:
        if not isinstance(array, jax.Array) or array.ndim < _MOST_AXES:
            continue
        if id(array) in seen:
            raise ValueError(
                f"{path!r}: expected an array of its own, received the one of "
                f"{seen[id(array)]!r}: tied leaves are input and output at once, which have "
                "different rules. Keep the array once, and give its role in 'roles'."
            )
        seen[id(array)] = path


def _known(roles: Mapping[str, Role], paths: list[str]) -> None:
    for text, role in roles.items():
        if role not in get_args(Role):
            raise ValueError(
                f"'roles': {text!r}: expected one of {', '.join(get_args(Role))}, received {role!r}"
            )
        if not any(re.search(text, path) for path in paths):
            raise ValueError(f"'roles': expected patterns of some path, received {text!r}")
