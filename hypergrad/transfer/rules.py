"""The tables: what is multiplied by what, for a leaf of a given role and growth."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from hypergrad.transfer.leaves import Leaf

Kind = Literal["standard", "mup", "u-mup", "depth-mup", "completep"]
Optimizer = Literal["adam", "sgd", "muon", "spectral"]
Decay = Literal["product", "sqrt", "unchanged", "absent"]


@dataclass(frozen=True)
class Factors:
    """What a leaf's quantities are multiplied by, relative to the base size.

    - `init`: the standard deviation of its initial values.
    - `forward`: the array itself, where the model reads it.
    - `rate`: its learning rate.
    - `epsilon`: Adam's epsilon.
    - `decay`: its weight decay, where the update subtracts `rate * decay * array`.
    """

    init: float = 1.0
    forward: float = 1.0
    rate: float = 1.0
    epsilon: float = 1.0
    decay: float = 1.0


@dataclass(frozen=True)
class Exponents:
    """One's own rule for a leaf: each factor as a power of the leaf's `width` ratio.

    The fields are those of `Factors`; `decay=None` keeps the product of rate and decay.
    """

    init: float = 0.0
    forward: float = 0.0
    rate: float = 0.0
    epsilon: float = 0.0
    decay: float | None = None


#: How much a residual branch shrinks with depth: its multiplier is (L / L₀)^-α.
ALPHA = {"depth-mup": 0.5, "completep": 1.0}

#: What each kind is stated for. Other pairs have no published table.
STATED: Mapping[str, tuple[str, ...]] = {
    "standard": get_args(Optimizer),
    "mup": get_args(Optimizer),
    "u-mup": ("adam",),
    "depth-mup": ("adam", "sgd"),
    "completep": ("adam",),
}


def factors(leaf: Leaf, kind: Kind, optimizer: Optimizer, decay: Decay, depth: float) -> Factors:
    """The factors of a leaf; `depth` is `L / L₀`.

    **Raises:** `ValueError` for a kind that is not stated for the optimizer.
    """
    if kind not in STATED:
        raise ValueError(f"'kind': expected one of {', '.join(STATED)}, received {kind!r}")
    if optimizer not in STATED[kind]:
        raise ValueError(
            f"'optimizer': expected one that {kind!r} is stated for ({', '.join(STATED[kind])}), "
            f"received {optimizer!r}"
        )
    if leaf.role == "fixed":
        # The blocks' own fixed leaves, such as biases of a stack, follow the depth all the same.
        found = Factors()
    elif kind == "standard":
        fan_in = leaf.grown_in**-0.5
        return Factors(init=fan_in)
    elif kind == "u-mup":
        found = _unit_scaled(leaf)
    else:
        found = _maximal_update(leaf, optimizer)
    if kind in ALPHA:
        found = _with_depth(leaf, found, kind, optimizer, depth)
    return replace(found, decay=_decay(leaf, found.rate, decay))


def of_exponents(leaf: Leaf, powers: Exponents) -> Factors:
    """The factors of a leaf by one's own exponents."""
    m = leaf.width
    rate = m**powers.rate
    return Factors(
        m**powers.init,
        m**powers.forward,
        rate,
        m**powers.epsilon,
        1.0 / rate if powers.decay is None else m**powers.decay,
    )


def folded(found: Factors, optimizer: Optimizer) -> Factors:
    """The same training without a multiplier in the model.

    An array times `a` moves the function as an array of `a` times the size does whose updates are
    `a` times as large. Optimizers that undo the gradient's size need one factor of `a`, plain
    gradient steps need two, as their gradient has lost one.
    """
    a = found.forward
    lost = a**2 if optimizer == "sgd" else a
    return Factors(
        init=found.init * a,
        rate=found.rate * lost,
        epsilon=found.epsilon / a,
        decay=found.decay / lost,
    )


def _maximal_update(leaf: Leaf, optimizer: Optimizer) -> Factors:
    """Yang et al. (2022), Table 8: the output is multiplied by 1/m and begins as at the base."""
    init = leaf.grown_in**-0.5 if leaf.role == "hidden" else 1.0
    forward = 1.0 / leaf.grown_in if leaf.role == "output" else 1.0
    rate = _RATES[optimizer](leaf)
    epsilon = 1.0 / leaf.grown_in if leaf.role == "hidden" else 1.0
    return Factors(init, forward, rate, epsilon)


def _adam(leaf: Leaf) -> float:
    return 1.0 / leaf.grown_in if leaf.role == "hidden" else 1.0


def _sgd(leaf: Leaf) -> float:
    if leaf.role == "hidden":
        return leaf.grown_out / leaf.grown_in
    return leaf.width


def _spectral(leaf: Leaf) -> float:
    """For updates of spectral norm one: that norm has to be √(fan-out / fan-in).

    The output has a multiplier of 1/m, so that its own update is √m.
    """
    if leaf.role == "output":
        return math.sqrt(leaf.grown_in)
    return math.sqrt(leaf.grown_out / leaf.grown_in)


def _muon(leaf: Leaf) -> float:
    """For `optax.contrib.muon` on hidden leaves and Adam on all others.

    What is left of √(fan-out / fan-in) after optax's own √max(1, fan-out / fan-in).
    """
    if leaf.role != "hidden":
        return _adam(leaf)

    def own(shape: tuple[int, ...]) -> float:
        fan_in = math.prod(shape[axis] for axis in leaf.fan_in)
        fan_out = math.prod(shape[axis] for axis in leaf.fan_out)
        return math.sqrt(max(1.0, fan_out / fan_in))

    return _spectral(leaf) * own(leaf.base) / own(leaf.shape)


_RATES: Mapping[str, Callable[[Leaf], float]] = {
    "adam": _adam,
    "sgd": _sgd,
    "spectral": _spectral,
    "muon": _muon,
}


def _unit_scaled(leaf: Leaf) -> Factors:
    """Blake et al. (2025), Table 2, relative to the base: values keep their size in every leaf."""
    if leaf.role == "input":
        return Factors(rate=leaf.grown_out**-0.5)
    if leaf.role == "hidden":
        root = leaf.grown_in**-0.5
        return Factors(forward=root, rate=root)
    if leaf.role == "output":
        return Factors(forward=1.0 / leaf.grown_in)
    return Factors()


def _with_depth(
    leaf: Leaf, found: Factors, kind: str, optimizer: Optimizer, depth: float
) -> Factors:
    """Dey et al. (2025), Table 1; α = ½ is Yang et al. (2023) and 1 is CompleteP."""
    alpha = ALPHA[kind]
    if leaf.block:
        # An update's effect on the output has to be 1/L in each of L blocks.
        power = 2 * alpha - 1 if optimizer == "sgd" else alpha - 1
        found = replace(found, rate=found.rate * depth**power)
    if kind == "completep":
        width = leaf.width if leaf.role in ("input", "vector", "output") else 1.0
        found = replace(found, epsilon=found.epsilon / width * depth**-alpha)
    return found


def _decay(leaf: Leaf, rate: float, rule: Decay) -> float:
    if rule not in get_args(Decay):
        raise ValueError(
            f"'decay': expected one of {', '.join(get_args(Decay))}, received {rule!r}"
        )
    if rule == "product":
        return 1.0 / rate
    return math.sqrt(leaf.grown_in) if rule == "sqrt" and leaf.role == "hidden" else 1.0
