"""The twelve scripts for Optuna: finite, the same for the same seed, conditional as they say."""

import numpy as np
import optuna
import pytest

from experiments.data.scripts import SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_the_same_for_the_same_seed_and_finite(name):
    def asked():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        trial = study.ask()
        return SCRIPTS[name](trial, 1), trial.params

    (value, params), (again, same) = asked(), asked()
    assert np.isfinite(value)
    assert (value, params) == (again, same)


@pytest.mark.parametrize("name", ["kernels", "models", "network", "pipeline", "descent", "linear"])
def test_what_is_asked_for_depends_on_what_was_drawn(name):
    def names(seed):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("experiments.data.scripts._loss", lambda *_: 0.0)
            SCRIPTS[name](trial, 0)
        return frozenset(trial.params)

    assert len({names(seed) for seed in range(10)}) > 1
