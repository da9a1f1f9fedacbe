"""Whatever a method that users call is given: it works, or an error says what was expected."""

import inspect
import random
import warnings

import numpy as np
import pytest

from strategies import (
    BayesSearcher,
    HypergradientSearcher,
    Ledger,
    MultiObjectiveSearcher,
    Observation,
    RandomSearcher,
)
from strategies.local import minimize
from strategies.schedulers import ASHA, Hyperband
from tests.strategies.test_fuzz import SPACE, VALUES, zero

CALLS = 30


def ledger():
    made = Ledger(RandomSearcher(SPACE))
    made.tell(Observation(made.ask().config, 1.0, {"x": 0.5}, number=0))
    made.ask()
    return made


def scheduler(kind):
    made = kind(RandomSearcher(SPACE), 9)
    made.tell(made.ask().number, 1.0)
    made.ask()
    return made


SPACES = (
    "active_mask", "complete", "decode", "encode", "feasible", "flatten", "from_json", "merged",
    "sample", "to_json", "unflatten", "validate",
)  # fmt: skip
SEARCHERS = ("propose", "check")
SCHEDULERS = ("tell", "job", "settled", "forget", "take_up", "load_state_dict")
OBJECTS = {
    "space": (lambda: SPACE, SPACES),
    "ledger": (ledger, ("ask", "tell", "record", "note", "forget", "warm_start")),
    "asha": (lambda: scheduler(ASHA), SCHEDULERS),
    "hyperband": (lambda: scheduler(Hyperband), SCHEDULERS),
    "result": (lambda: minimize(zero, SPACE, trials=1), ("hypervolume",)),
    **{
        kind.__name__: (lambda kind=kind: kind(SPACE), SEARCHERS)
        for kind in (BayesSearcher, HypergradientSearcher, MultiObjectiveSearcher, RandomSearcher)
    },
}
METHODS = [(name, method) for name, (_, methods) in OBJECTS.items() for method in methods]


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_every_error_says_what_was_expected(name, method):
    make = OBJECTS[name][0]
    parameters = [
        p
        for p in inspect.signature(getattr(make(), method)).parameters.values()
        if p.kind not in (2, 4)
    ]
    rng = random.Random(name + method)
    for _ in range(CALLS):
        given = {
            p.name: rng.choice(VALUES)
            for p in parameters
            if p.default is p.empty or rng.random() < 0.4
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                getattr(make(), method)(**given)
            except Exception as error:
                if not isinstance(error, ValueError | TypeError) or "expected" not in str(error):
                    pytest.fail(f"{name}.{method}({given!r:.300}): {error!r}")


def test_a_seed_is_no_generator():
    with pytest.raises(ValueError, match="'rng': expected a generator"):
        SPACE.sample(0)
    assert SPACE.sample(np.random.default_rng(0))
