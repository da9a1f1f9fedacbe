"""The thirty tuning tasks: what they are made of, and their gradients."""

import numpy as np
import pytest

from experiments.data.tuning import TASKS
from experiments.defaults import behind, unlikely, won

GRADED = [name for name in TASKS if name.startswith(("ridge", "logistic", "kernel-ridge"))]


def sizes(space, config):
    return sum(
        space.domains[path].size if hasattr(space.domains[path], "shape") else 1
        for path in space.flatten(config)
    )


def test_there_are_thirty_of_all_kinds():
    assert len(TASKS) == 30
    rng = np.random.default_rng(0)
    for make in TASKS.values():
        space = make(0).space
        assert all(2 <= sizes(space, space.sample(rng)) <= 12 for _ in range(5))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_the_same_for_the_same_seed_and_finite(name):
    first, again = TASKS[name](1), TASKS[name](1)
    config = first.space.sample(np.random.default_rng(0))
    report = first.evaluate(config)
    assert np.isfinite(report.value)
    assert report == again.evaluate(config)
    assert (report.gradient is not None) == (name in GRADED)


@pytest.mark.parametrize("name", GRADED)
def test_gradients_against_differences(name):
    task = TASKS[name](0)
    rng = np.random.default_rng(1)
    for _ in range(3):
        config = task.space.sample(rng)
        for path, slope in task.evaluate(config).gradient.items():
            values = np.ravel(config[path]).astype(float)

            def along(moved, config=config, path=path):
                value = moved.tolist() if isinstance(config[path], list) else float(moved[0])
                return task.evaluate({**config, path: value}).value

            # Relative steps, as all of them are on a logarithmic scale.
            steps = 1e-5 * np.diag(values)
            differences = [(along(values + s) - along(values - s)) / (2 * s.sum()) for s in steps]
            np.testing.assert_allclose(
                np.ravel(slope) * values, differences * values, rtol=1e-4, atol=1e-8
            )


def test_differences_are_those_of_the_same_seed():
    rival = np.array([1.0, 20.0, 300.0])
    # Student's t of mean 1 and standard error 0.1 / sqrt(3) with two degrees of freedom.
    assert unlikely(rival + np.array([0.9, 1.0, 1.1]), rival) == pytest.approx(0.00166, rel=1e-2)
    assert unlikely(rival, rival + np.array([0.9, 1.0, 1.1])) > 0.99
    assert unlikely(np.ones(3) + 1e-3, np.ones(3)) == 0
    assert unlikely(np.ones(3), np.ones(3)) == 1


def test_behind_is_what_many_tests_at_once_leave():
    # Holm: the smallest against level / 3, the next against level / 2, and so on.
    assert behind({"a": 0.01, "b": 0.024, "c": 0.9}, 0.05) == {"a", "b"}
    assert behind({"a": 0.02, "b": 0.02, "c": 0.02}, 0.05) == set()
    assert behind({"a": 0.04}, 0.05) == {"a"}


def test_half_of_a_tie_is_won():
    assert won(np.array([1.0, 2.0, 3.0, 3.0]), np.array([2.0, 2.0, 2.0, 4.0])) == 0.625
