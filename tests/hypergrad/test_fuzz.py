"""Whatever a public name is given: it works, or an error says what was expected."""

import inspect
import random
import traceback
import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad
from hypergrad import (
    CG,
    BilevelProblem,
    ImplicitDifferentiation,
    Newton,
    Unrolled,
    data,
    evidence,
    gaussian_process,
    hypernetwork,
    implicit,
    inner,
    linear,
    outer,
    policy,
    risk,
    sampling,
    schedule,
    self_tuning,
    tasks,
    transfer,
    unrolled,
)

CALLS = 40


class Odd:
    """An object that is nothing that anybody expects."""


VALUES = [
    None, True, False, 0, 1, -1, 2, 10**400, 0.5, -2.5, float("nan"), float("inf"), "", "x", b"x",
    1j, [], [1], (), (3,), {}, {"x": 0.5}, {1: 2}, np.float32(0.5), np.int64(2),
    np.array([0.5, 0.1]), np.array(["a"]), np.zeros((2, 2)), jnp.ones(2), Odd(), Odd, len,
    lambda *_: 0.0, CG(), CG, Newton(), optax.sgd(0.1), optax.sgd, ImplicitDifferentiation(),
    Unrolled(optax.sgd(0.1), 3), BilevelProblem(lambda w, h, b: 0.0, lambda w, h, b: 0.0), set(),
    range(3),
]  # fmt: skip


def within(error, function):
    """Whether an error came out of a function that was given."""
    code = inspect.unwrap(function).__code__
    return any(frame.f_code is code for frame, _ in traceback.walk_tb(error.__traceback__))


def made(module, functions=False):
    """The classes of a module that users make, and its functions if asked, by their name."""
    names = getattr(module, "__all__", dir(module))
    for name in names:
        kind = getattr(module, name)
        wanted = inspect.isclass(kind) or (functions and inspect.isfunction(inspect.unwrap(kind)))
        own = wanted and kind.__module__.startswith("hypergrad")
        error = inspect.isclass(kind) and issubclass(kind, Exception)
        if own and not inspect.isabstract(kind) and not error:
            yield f"{module.__name__}.{name}", kind


MODULES = (hypergrad, implicit, inner, linear, outer, policy, tasks, unrolled)
FUNCTIONS = (
    hypergrad.check_hypergradient, hypergrad.cross_validated, hypergrad.hypergradient,
    hypergrad.metasmoothness, hypergrad.recommend, outer.optimality_report, outer.retrain_gap,
    outer.second_order_report, policy.judge, tasks.find_breaks, tasks.over_tasks, tasks.task_bound,
)  # fmt: skip
#: A protocol.
OTHERS = ("HasTolerance",)
#: Of these the functions, too.
WHOLE = (
    data, evidence, gaussian_process, hypernetwork, risk, sampling, schedule, self_tuning, transfer,
)  # fmt: skip
ENTRIES = {kind: name for module in MODULES for name, kind in made(module)}
ENTRIES |= {kind: name for module in WHOLE for name, kind in made(module, functions=True)}
ENTRIES = {name: kind for kind, name in ENTRIES.items() if not name.endswith(OTHERS)}
ENTRIES |= {f.__name__: f for f in FUNCTIONS}


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_error_says_what_was_expected(name):
    function, rng = ENTRIES[name], random.Random(name)
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind not in (2, 4)
    ]
    for _ in range(CALLS):
        given = {
            p.name: rng.choice(VALUES)
            for p in parameters
            if p.default is p.empty or rng.random() < 0.4
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                function(**given)
            except Exception as error:
                # "Expected type" is what the suite's checker of annotations says.
                said = "expected" in str(error).lower() or within(error, optax.sgd)
                if not said or not isinstance(error, ValueError | TypeError):
                    pytest.fail(f"{name}({given!r:.300}): {error!r:.300}")
