"""What a checkpoint is of: content tells functions apart, and survives the process."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.inner import OptaxSolver
from hypergrad.outer import Alternating
from hypergrad.outer.identity import fingerprint, fingerprint_program
from hypergrad.unrolled import Unrolled

GLOBAL = {"rate": 0.0}


class Plain:
    def __init__(self, rate):
        self.rate = rate

    def at(self, step):
        return self.rate

    __call__ = at


class Slots:
    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return self.rate


class Module(eqx.Module):
    rate: float

    def at(self, step):
        return self.rate


def default(rate):
    def schedule(step, rate=rate):
        return rate

    return schedule


def keyword(rate):
    def schedule(step, *, rate=rate):
        return rate

    return schedule


def reads_a_global(step):
    return GLOBAL["rate"]


def reads_it_through_another(step):
    return reads_a_global(step)


def written(rate):
    """Functions of one name that differ in nothing but a constant of their code."""
    space = {}
    exec(f"def schedule(step): return {rate}", space)
    return space["schedule"]


def of_class_with_another_method(rate):
    return type("Named", (), {"__call__": written(rate), "__qualname__": "Named"})()


SCHEDULES = {
    "code": written,
    "closure": lambda rate: lambda step: rate,
    "nested closure": lambda rate: lambda step: (lambda: rate)(),
    "default argument": default,
    "keyword default": keyword,
    "bound method": lambda rate: Plain(rate).at,
    "bound method of a module": lambda rate: Module(rate).at,
    "callable object": Plain,
    "callable object with slots": Slots,
    "method of a class": of_class_with_another_method,
    "partial": lambda rate: functools.partial(lambda step, rate: rate, rate=rate),
    "compiled": lambda rate: jax.jit(Plain(rate).at),
    "array": lambda rate: lambda step, table=np.full(5000, rate): table[step],  # noqa: B008
    "middle of an array": lambda rate: optax.constant_schedule(jnp.zeros(5000).at[99].set(rate)),
    "optax": lambda rate: optax.cosine_decay_schedule(rate, 10),
    "global": lambda rate: GLOBAL.update(rate=rate) or reads_a_global,
    "global of another": lambda rate: GLOBAL.update(rate=rate) or reads_it_through_another,
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_are_told_apart_by_content(kind):
    make = SCHEDULES[kind]
    one = fingerprint(optax.sgd(make(0.1)))
    assert one != fingerprint(optax.sgd(make(0.5)))
    assert one == fingerprint(optax.sgd(make(0.1)))


def test_a_schedule_is_itself_after_it_was_called():
    make = optax.cosine_decay_schedule
    schedule = make(0.1, 10)
    before = fingerprint(schedule)
    schedule(3)
    assert fingerprint(schedule) == before == fingerprint(make(0.1, 10))
    assert fingerprint(schedule) != fingerprint(make(0.1, 11))


def test_optimizers_estimators_and_algorithms_are_told_apart():
    def makers(rate):
        return [
            optax.sgd(rate),
            optax.adam(rate),
            optax.inject_hyperparams(optax.sgd)(learning_rate=rate),
            optax.chain(optax.clip(rate), optax.sgd(0.1)),
            optax.multi_transform({"a": optax.sgd(rate)}, lambda tree: "a"),
            Alternating(Unrolled(lambda h: optax.sgd(rate), 5), optax.sgd(0.1)),
            Alternating(
                ImplicitDifferentiation(OptaxSolver(optax.sgd(rate), steps=3)), optax.sgd(0.1)
            ),
        ]

    one, again, other = ([fingerprint(x) for x in makers(rate)] for rate in (0.1, 0.1, 0.5))
    assert one == again
    assert len({*one, *other}) == 2 * len(one)


def test_cycles_end_and_order_of_sets_does_not_matter():
    one, other = {"a": 1}, {"a": 1}
    one["self"], other["self"] = one, other
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint({"x", "y", "z"}) == fingerprint({"z", "y", "x"})
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1]) != fingerprint((1,)) != fingerprint([True])


def test_programs_hold_the_constants_of_the_programs_inside():
    def loss(value):
        table = jnp.zeros(5000).at[2500].set(value)
        inside = jax.jit(lambda x: x @ table)
        return lambda x: inside(x) ** 2

    point = jnp.ones(5000)
    one = fingerprint_program(loss(1.0), point)
    assert one == fingerprint_program(loss(1.0), point)
    assert one != fingerprint_program(loss(2.0), point)


SCRIPT = """
import optax
from hypergrad.outer.identity import fingerprint

class Plain:
    def __init__(self, rate): self.rate, self.names = rate, {"x", "y", "z"}
    def at(self, step): return self.rate if step in {"a", "b", "c"} else helper(step)

def helper(step): return 2.0
print(fingerprint([optax.adam(Plain(0.1).at), optax.adam(lambda step: 0.1), Plain]))
"""


def test_it_is_the_same_in_another_process():
    root = str(Path(__file__).parents[3])

    def launch(seed):
        env = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", SCRIPT]
        return subprocess.run(command, env=env, check=True, capture_output=True).stdout

    assert launch("1") == launch("2")
