"""What hypernetworks are compared with: searches that train anew, and a model of the loss."""

import jax.numpy as jnp
import numpy as np
import optuna
from jaxtyping import Array, Float
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from experiments.hypernet_parts.classifier import Task
from experiments.hypernet_parts.networks import HIGHEST, LOWEST


def search(task: Task, penalties: int, trials: int, seed: int) -> Array:
    """The best of so many penalties that tree-structured Parzen estimators find, `(penalties,)`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        chosen = [trial.suggest_float(f"{i}", LOWEST, HIGHEST) for i in range(penalties)]
        return task.validated(jnp.array(chosen))

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True))
    study.optimize(objective, n_trials=trials)
    return jnp.array([study.best_params[f"{i}"] for i in range(penalties)])


def process(
    draws: Float[np.ndarray, "n d"], losses: Float[np.ndarray, " n"]
) -> GaussianProcessRegressor:
    """A Gaussian process of the loss."""
    kernel = ConstantKernel() * RBF()
    return GaussianProcessRegressor(kernel, normalize_y=True, random_state=0).fit(draws, losses)
