"""A rule for one model at one size: initial values, multipliers, learning rates."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from hypergrad.expected import received, require, require_choice, require_count
from hypergrad.transfer.leaves import Leaf, Role, classify, is_array, shapes_of
from hypergrad.transfer.rules import (
    ALPHA,
    Decay,
    Exponents,
    Factors,
    Kind,
    Optimizer,
    factors,
    folded,
    of_exponents,
)


@dataclass(frozen=True)
class Parametrization:
    """How a model is initialised and trained at its size, relative to a base size.

    Made by `infer`. With it a model is trained so:

        params = rule.init(large, small)         # once, before training
        optimizer = rule.optimizer(optax.adam(rate_of_the_small_model))
        loss(rule.forward(params))               # wherever the model reads its arrays

    At the base size all three hand back what they are given.

    - `leaves`: what each array is, in the order of the tree.
    - `kind`: the name of the rule, or one's own exponents by patterns of paths.
    - `family`, `decay`, `depth`, `fold`: as given to `infer`.
    """

    leaves: tuple[Leaf, ...]
    kind: Kind | Mapping[str, Exponents]
    family: Optimizer
    decay: Decay = "product"
    depth: tuple[int, int] = (1, 1)
    fold: bool = False
    _factors: tuple[Factors, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        if not isinstance(self.leaves, tuple) or not all(
            isinstance(leaf, Leaf) for leaf in self.leaves
        ):
            raise ValueError(
                "Parametrization: leaves: expected a tuple of Leaf, as `infer` makes it, received "
                f"{received(self.leaves)}."
            )
        _check(self.kind, self.family, self.decay, self.depth, self.fold)
        object.__setattr__(self, "_factors", tuple(self._of(leaf) for leaf in self.leaves))

    def _of(self, leaf: Leaf) -> Factors:
        if isinstance(self.kind, str):
            deeper = self.depth[1] / self.depth[0]
            found = factors(leaf, self.kind, self.family, self.decay, deeper)
        else:
            powers = [p for text, p in self.kind.items() if re.search(text, leaf.path)]
            found = of_exponents(leaf, powers[0] if powers else Exponents())
        return folded(found, self.family) if self.fold else found

    @property
    def factors(self) -> dict[str, Factors]:
        """The factors of each leaf, by its path."""
        return {leaf.path: f for leaf, f in zip(self.leaves, self._factors, strict=True)}

    @property
    def branch(self) -> float:
        """What the model multiplies each residual branch by, relative to the base depth."""
        alpha = ALPHA.get(self.kind, 0.0) if isinstance(self.kind, str) else 0.0
        return (self.depth[1] / self.depth[0]) ** -alpha

    def at(self, params: PyTree, depth: int | None = None) -> "Parametrization":
        """The same rule at another size, the base size included.

        **Arguments:** `params`: arrays or shapes; `depth`: that of the model, default unchanged.

        **Raises:** `ValueError` if an axis differs that does not grow.
        """
        shapes = {path: tuple(array.shape) for path, array, _ in shapes_of(params)}
        self._same(shapes, "params")
        leaves = tuple(leaf.at(shapes[leaf.path]) for leaf in self.leaves)
        target = self.depth[1] if depth is None else depth
        return replace(self, leaves=leaves, depth=(self.depth[0], target))

    def init(self, params: PyTree, base: PyTree) -> PyTree:
        """Initial values as the rule wants them.

        **Arguments:**

        - `params`: drawn by the model's own initialisation at this size.
        - `base`: drawn by the same initialisation at the base width. From both it is measured how
          each array's size moves with width already, to the nearest half power; what is missing is
          multiplied on.
        """
        small = {path: array for path, array, _ in shapes_of(base)}
        self._same({path: () for path in small}, "base")

        def scale(leaf: Leaf, found: Factors, array: jax.Array) -> float:
            reference = small[leaf.path]
            here, there = (float(jnp.sqrt(jnp.mean(jnp.square(a)))) for a in (array, reference))
            untouched = self.kind == "standard" or leaf.role == "fixed" or leaf.width == 1.0
            if untouched or not here or not there:
                return 1.0
            measured = math.log(here / there) / math.log(leaf.width)
            # Draws are random, initialisations are powers of √m: one of them was meant.
            return found.init * leaf.width ** (-round(2 * measured) / 2)

        return self._scaled(params, scale)

    def forward(self, params: PyTree) -> PyTree:
        """The arrays as the model reads them: each times its multiplier."""
        return self._scaled(params, lambda leaf, found, array: found.forward)

    def optimizer(self, transform: optax.GradientTransformation) -> optax.GradientTransformation:
        """An optax optimizer whose updates are scaled leaf by leaf.

        Its own rate, epsilon and weight decay are those of the base size. Epsilon is scaled through
        the gradient that the optimizer sees (Adam undoes the scale, but for epsilon): clip
        gradients outside, `optax.chain(optax.clip_by_global_norm(1.0), rule.optimizer(...))`.
        Weight decay is scaled through the params that it sees. It must read them for decoupled
        decay alone; for one that reads distances from them (`prodigy`, `dog`) say
        `decay="absent"`.
        """
        inner = optax.with_extra_args_support(transform)
        adaptive = self.family in ("adam", "muon")
        rates = [f.rate for f in self._factors]
        epsilons = [f.epsilon if adaptive else 1.0 for f in self._factors]
        decays = [1.0 if self.decay == "absent" else f.decay for f in self._factors]
        if all(each == 1.0 for each in (*rates, *epsilons, *decays)):
            return transform
        by_path = {
            leaf.path: numbers
            for leaf, *numbers in zip(self.leaves, rates, epsilons, decays, strict=True)
        }

        def times(tree: PyTree, which: int, power: int = 1) -> PyTree:
            return _by_path(tree, lambda path: by_path[path][which] ** power)

        def update(
            grads: PyTree, state: Any, params: PyTree | None = None, **extra: Any
        ) -> tuple[PyTree, Any]:
            seen = None if params is None else times(params, 2)
            updates, state = inner.update(times(grads, 1, -1), state, seen, **extra)
            return times(updates, 0), state

        return optax.GradientTransformationExtraArgs(inner.init, update)

    def muon_leaves(self, params: PyTree) -> PyTree:
        """For `optax.contrib.muon(muon_weight_dimension_numbers=...)`: hidden leaves only."""
        known = {leaf.path: leaf for leaf in self.leaves}

        def numbers(keys: tuple, array: Any) -> Any:
            leaf = known.get(jax.tree_util.keystr(keys))
            if leaf is None or leaf.role != "hidden":
                return None
            return optax.contrib.MuonDimensionNumbers(leaf.fan_in, leaf.fan_out)

        return jax.tree_util.tree_map_with_path(numbers, params)

    def _scaled(self, params: PyTree, scale: Any) -> PyTree:
        known = dict(zip((leaf.path for leaf in self.leaves), self._factors, strict=True))
        leaf_at = {leaf.path: leaf for leaf in self.leaves}
        arrays = {path: array for path, array, _ in shapes_of(params)}
        self._same({path: () for path in arrays}, "params")
        return _by_path(params, lambda path: scale(leaf_at[path], known[path], arrays[path]))

    def _same(self, paths: Mapping[str, Any], name: str) -> None:
        wrong = sorted({leaf.path for leaf in self.leaves} ^ set(paths))
        if wrong:
            raise ValueError(
                f"{name!r}: expected the arrays that the rule was inferred from, received others: "
                f"{', '.join(wrong[:4])}"
            )


def infer(
    small: PyTree,
    large: PyTree,
    *,
    kind: Kind | Mapping[str, Exponents] = "mup",
    optimizer: Optimizer = "adam",
    decay: Decay = "product",
    depth: tuple[int, int] = (1, 1),
    blocks: str | None = None,
    roles: Mapping[str, Role] | None = None,
    fold: bool = False,
) -> Parametrization:
    """The rule for a large model, from the shapes of the model at two widths.

    Which axes grow says what an array is. Of an array with one growing axis it must be known which
    axis is fan-out: the last one, as in Flax and in `x @ w`; the first one for equinox's layers,
    which are recognised, and where the first two of four axes or more grow, as in `jax.lax.conv`.

    **Arguments:**

    - `small`: arrays, or `jax.ShapeDtypeStruct`s, of the model at the base width: any pytree.
    - `large`: of the same model, wider. For another depth build both as deep as the large one.
    - `kind`: `"standard"`; `"mup"` (Yang et al. 2022); `"u-mup"` (Blake et al. 2025); `"depth-mup"`
      (Yang et al. 2023); `"completep"` (Dey et al. 2025); or `Exponents` by patterns of paths.
    - `optimizer`: `"adam"` for optimizers that divide each gradient by its own size; `"sgd"`;
      `"muon"` for `optax.contrib.muon` with `Parametrization.muon_leaves`; `"spectral"` for updates
      of spectral norm one on every matrix, such as Shampoo's.
    - `decay`: of decoupled weight decay: `"product"` keeps rate times decay in each leaf; `"sqrt"`
      multiplies that of hidden leaves by √m ("Robust Layerwise Scaling Rules", 2025);
      `"unchanged"`; `"absent"` for optimizers without one.
    - `depth`: layers of the base and of the large model.
    - `blocks`: regular expression of the paths that lie in repeated blocks.
    - `roles`: a role by pattern of paths, for what shapes cannot tell: a readout that is a vector,
      a table that is read both ways; `"hidden"` for experts whose number grows as well.
    - `fold`: no multipliers in the model: they are folded into initial values and learning rates.

    **Raises:** `ValueError` for shapes that do not grow, tied arrays, more than two growing axes in
    one array, a kind that is not stated for the optimizer, depth without `blocks`.
    """
    _check(kind, optimizer, decay, depth, fold)
    if blocks is not None:
        _pattern("blocks", blocks)
    if roles is not None and not isinstance(roles, Mapping):
        raise ValueError(
            f"'roles': expected a dict from patterns to roles, received {received(roles)}"
        )
    for text in roles or ():
        _pattern("roles", text)
    if depth[0] != depth[1] and isinstance(kind, str):
        if kind not in ALPHA:
            raise ValueError(f"'depth': expected one of {', '.join(ALPHA)}, received {kind!r}")
        if blocks is None:
            raise ValueError("'blocks': expected a pattern of what repeats in depth, received None")
    leaves = classify(small, large, dict(roles or {}), blocks)
    if not isinstance(kind, str):
        for text in kind:
            if not any(re.search(text, leaf.path) for leaf in leaves):
                raise ValueError(f"'kind': expected patterns of some path, received {text!r}")
    return Parametrization(leaves, kind, optimizer, decay, depth, fold)


def _check(kind: Any, family: Any, decay: Any, depth: Any, fold: Any) -> None:
    """Refuse options of the wrong kind.

    **Raises:** `ValueError` that names the option.
    """
    if isinstance(kind, Mapping):
        for text, powers in kind.items():
            _pattern("kind", text)
            require("Parametrization", "kind", powers, Exponents, "Exponents(rate=-1)")
    elif not isinstance(kind, str):
        raise ValueError(
            "'kind': expected the name of a rule, or Exponents by patterns of paths, received "
            f"{received(kind)}"
        )
    require_choice("Parametrization", "optimizer", family, get_args(Optimizer))
    require_choice("Parametrization", "decay", decay, get_args(Decay))
    if not isinstance(depth, tuple | list) or len(depth) != 2:
        raise ValueError(f"'depth': expected two positive integers, received {received(depth)}")
    for each in depth:
        require_count("Parametrization", "depth", each)
    if not isinstance(fold, bool):
        raise ValueError(f"'fold': expected True or False, received {received(fold)}")


def _pattern(name: str, text: Any) -> None:
    try:
        fine = isinstance(text, str) and bool(re.compile(text))
    except re.error:
        fine = False
    if not fine:
        raise ValueError(f"{name!r}: expected a regular expression, received {received(text)}")


def _by_path(tree: PyTree, number: Any) -> PyTree:
    """Each array times a number; arrays times one, and what is no array, as they are."""

    def one(keys: tuple, leaf: Any) -> Any:
        if not is_array(leaf):
            return leaf
        factor = number(jax.tree_util.keystr(keys))
        return leaf if factor == 1.0 else leaf * jnp.asarray(factor, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, tree)
