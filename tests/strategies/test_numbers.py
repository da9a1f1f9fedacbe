"""Numbers and choices of any library: made plain where they enter, and back from a state."""

import enum
import json
import math
import pathlib
import warnings
from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import optuna
import pandas as pd
import pytest

from strategies import (
    Categorical,
    Float,
    Int,
    Observation,
    Ordinal,
    RandomSearcher,
    SearchSpace,
    Stop,
    report,
)
from strategies import optuna as on_optuna
from strategies.local import minimize
from strategies.schedulers import ASHA, run

optuna.logging.set_verbosity(optuna.logging.ERROR)
SPACE = SearchSpace({"x": Float(0.0, 1.0)})


class Attached:
    """As PyTorch's tensors with a gradient: no array, but plain lists."""

    def __array__(self, *_, **__):
        raise RuntimeError("call detach first")

    def tolist(self):
        return 0.5


HALVES = {
    "Decimal": Decimal("0.5"),
    "Fraction": Fraction(1, 2),
    "bfloat16": jnp.bfloat16(0.5),
    "float8": np.array(0.5, jnp.float8_e4m3fn),
    "float16": np.float16(0.5),
    "long double": np.longdouble("0.5"),
    "no axes": np.array(0.5),
    "JAX": jnp.array(0.5),
    "pandas": pd.Series([0.5])[0],
    "attached": Attached(),
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_a_number_of_any_library_is_a_number_everywhere(half, tmp_path):
    space = SearchSpace({"x": Float(0.0, 1.0, default=half), "y": Float(0.0, half, step=half)})
    path = tmp_path / "state.json"

    def objective(config):
        return report(
            half,
            {"x": half},
            gradient_error=half,
            cost=half,
            resource=half,
            config={"x": half},
            constraints=[half],
            info={"half": half},
        )

    searcher = RandomSearcher(space, first=[{"x": half, "y": half}])
    stop = Stop(cost=half)
    found = minimize(objective, space, searcher=searcher, trials=3, stop=stop, state_path=path)
    (told,) = found.history
    numbers = told.value, told.gradient["x"], told.gradient_error, told.cost, told.resource
    assert [*numbers, *told.config.values(), *told.constraints.values()] == [0.5] * 8
    assert {type(each) for each in numbers} == {float}
    assert found.trials[0].info == {"half": 0.5}
    restored = RandomSearcher(space).ledger
    restored.restore(path)
    assert restored.history == found.history


@pytest.mark.parametrize("four", [np.uint8(4), np.array(4), jnp.int32(4), pd.array([4])[0]])
def test_a_whole_number_of_any_library_is_an_option(four):
    searcher = RandomSearcher(SearchSpace({"n": Int(0, four)}), seed=four)
    found = minimize(lambda config: config["n"], searcher.space, searcher=searcher, trials=four)
    assert found.ledger.trials == 4
    assert [type(Stop(patience=four).patience), type(searcher.seed)] == [int, int]


def test_values_in_half_precision_are_no_failures_and_their_gradients_are_kept():
    gradient = {"x": jnp.array([1.5], jnp.bfloat16)[0]}
    found = minimize(
        lambda config: report(jnp.bfloat16(2.0), gradient),
        SPACE,
        searcher=RandomSearcher(SPACE),
        trials=1,
    )
    assert (found.best_value, found.history[0].gradient) == (2.0, {"x": 1.5})


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Name(enum.StrEnum):
    ADAM = "adam"
    SGD = "sgd"


CHOICES = [
    [1, 2, math.inf],
    [math.nan, 0.5],
    list(Size),
    list(Name),
    [np.float32("inf"), np.float32(1)],
]


@pytest.mark.parametrize("kind", [Categorical, Ordinal])
@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_choices_that_json_would_change_come_back_from_a_state(kind, choices, tmp_path):
    space = SearchSpace({"c": kind(choices), "x": Float(0.0, 1.0)})
    path = tmp_path / "state.json"
    searcher = RandomSearcher(space)
    found = minimize(
        lambda config: config["x"], space, searcher=searcher, trials=6, state_path=path
    )
    restored = RandomSearcher(space).ledger
    restored.restore(path)
    was, now = ([o.config["c"] for o in history] for history in (found.history, restored.history))
    assert len({repr(each) for each in was}) > 1
    assert [repr(each) for each in now] == [repr(each) for each in was]


@pytest.mark.parametrize("unknown", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_cost_that_is_no_number_is_not_known_and_can_be_saved(unknown, tmp_path):
    def objective(_):
        return report(1.0, {"x": 1.0}, cost=unknown, resource=unknown)

    path = tmp_path / "state.json"
    minimize(objective, SPACE, searcher=RandomSearcher(SPACE), trials=2, state_path=path)
    restored = RandomSearcher(SPACE).ledger
    restored.restore(path)
    assert [(o.value, o.cost, o.resource) for o in restored.history] == [(1.0, None, None)] * 2

    def asha():
        return ASHA(RandomSearcher(SPACE), 2, eta=2, configurations=2)

    schedule = run(objective, asha(), state_path=tmp_path / "asha.json")
    again = asha()
    again.restore(tmp_path / "asha.json")
    assert again.state_dict() == schedule.state_dict()
    ledger = RandomSearcher(SPACE).ledger
    assert ledger.tell(Observation({"x": 0.5}, 1.0, gradient_error=math.nan)).gradient_error is None


OBJECTS = [
    [pathlib.Path("a"), pathlib.Path("b")],
    [np.arange(2), np.arange(3)],
    [(1, 2), (3,)],
    [len, max],
    *CHOICES,
]


@pytest.mark.parametrize("choices", OBJECTS, ids=str)
def test_a_study_knows_its_trials_and_what_they_tuned_themselves_into(choices, tmp_path):
    space = SearchSpace({"c": Categorical(choices), "x": Float(0.25, 1.0)})
    url = f"sqlite:///{tmp_path}/study.db"
    for _ in range(2):
        study = optuna.create_study(
            storage=url,
            study_name="s",
            load_if_exists=True,
            sampler=on_optuna.HypergradSampler(searcher=RandomSearcher(space)),
        )

        def objective(trial):
            config = on_optuna.suggest(trial, space)
            assert any(config["c"] is choice for choice in space.domains["c"].choices)
            return on_optuna.report(trial, 1.0, {"x": 1.0}, config={**config, "x": 0.5})

        study.optimize(objective, n_trials=2)
    study.ask().suggest_float("x", 0.25, 1.0)
    history, _ = study.sampler._view.look(study, study.get_trials(deepcopy=False))
    assert [o.config["x"] for o in history] == [0.5] * 4
    assert [o.gradient for o in history] == [{"x": 1.0}] * 4


def test_remarks_are_stored_as_text_where_json_cannot_hold_them():
    info = {"path": enum, "size": Size.LARGE, "more": {"set": {1}, "z": [1j]}}
    stored = json.loads(json.dumps(report(1.0, info=info).to_json()))["info"]
    assert stored["size"] == 2
    assert stored["more"] == {"set": "{1}", "z": ["1j"]}
    assert "enum" in stored["path"]


def test_a_callback_may_answer_with_a_boolean_of_any_library():
    for answer in (np.True_, jnp.array(True), np.array(True)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = minimize(
                lambda config: config["x"],
                SPACE,
                searcher=RandomSearcher(SPACE),
                trials=3,
                callbacks=[lambda _, answer=answer: answer],
            )
        assert len(found.trials) == 1


def test_what_a_masked_array_hides_is_not_known():
    # NumPy's own conversion gives 0.0 for the constant, and what lies below the mask elsewhere.
    found = minimize(lambda config: np.ma.masked, SPACE, trials=1)
    assert [item.status for item in found.history] == ["failed"]
    hidden = np.ma.array([1.0, 2.0], mask=[False, True])
    gradient = report(0.0, {"x": hidden}).gradient["x"]
    assert gradient[0] == 1.0
    assert math.isnan(gradient[1])
