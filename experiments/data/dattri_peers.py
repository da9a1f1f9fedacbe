"""Attributions of a network's training by the library dattri, on PyTorch: both are optional.

`pip install dattri torch`. The network is that of `experiments.attribution`: two matrices, `tanh`
between them, cross-entropy, and a ridge penalty in each example's loss.
"""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

# Of inverse curvatures; ours has the same.
_DAMPING = 0.01
# Steps of conjugate gradients and Arnoldi: as many as ours may take. LiSSA's products and batch.
_ITERATIONS, _PROJECTED, _RECURSIONS, _BATCH, _SCALE = 200, 100, 1000, 50, 50.0
# TRAK projects gradients to so many numbers; each is a way of its own.
_TRAK = (32, 128, 256)


def available() -> bool:
    """Whether dattri and PyTorch are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "dattri"))


def dattri_scores(
    params: dict, examples: tuple, queries: tuple, ridge: float, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Scores of every way, shape `(queries, examples)`; positive: the example raises the loss.

    **Arguments:**

    - `params`: the trained matrices, `"in"` and `"out"`.
    - `examples`, `queries`: inputs, and numbers of the classes.
    - `ridge`: half of it times the sum of squares is in the training loss.
    """
    import torch
    from dattri import algorithm
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(seed)
    hidden, classes = params["out"].shape
    inputs = params["in"].shape[0]
    model = torch.nn.Sequential(
        torch.nn.Linear(inputs, hidden, bias=False),
        torch.nn.Tanh(),
        torch.nn.Linear(hidden, classes, bias=False),
    )
    weights = {"0.weight": params["in"], "2.weight": params["out"]}
    trained = {name: torch.tensor(np.asarray(w).T.copy()).float() for name, w in weights.items()}
    model.load_state_dict(trained)

    def cross_entropy(p: dict, data: tuple) -> Any:
        x, y = data[0].reshape(-1, inputs), data[1].reshape(-1).long()
        scores = torch.func.functional_call(model, p, x)
        return torch.nn.functional.cross_entropy(scores, y)

    def penalised(p: dict, data: tuple) -> Any:
        squares = sum((w**2).sum() for w in p.values())
        return cross_entropy(p, data) + 0.5 * ridge * squares

    def margin(p: dict, data: tuple) -> Any:
        log = -cross_entropy(p, data)
        return log - torch.log(-torch.expm1(log - 1e-6))

    def right(p: dict, data: tuple) -> Any:
        return torch.exp(-cross_entropy(p, data))

    def loader(data: tuple) -> Any:
        x, y = (torch.tensor(np.asarray(part)) for part in data)
        return DataLoader(TensorDataset(x.float(), y.float()), batch_size=len(y), shuffle=False)

    def task(loss: Any, target: Any = None) -> Any:
        return AttributionTask(loss, model, trained, target_func=target)

    def trak(size: int) -> Any:
        return algorithm.TRAKAttributor(
            task(margin),
            correct_probability_func=right,
            projector_kwargs={"proj_dim": size, "proj_seed": seed},
            regularization=1e-6,
        )

    train, test = loader(examples), loader(queries)
    # Made one at a time: dattri keeps the options of its projections in one place for all.
    makers: dict[str, Callable[[], Any]] = {
        "influence by CG, dattri": lambda: algorithm.IFAttributorCG(
            task(penalised, cross_entropy), max_iter=_ITERATIONS, regularization=_DAMPING
        ),
        "influence by LiSSA, dattri": lambda: algorithm.IFAttributorLiSSA(
            task(penalised, cross_entropy),
            batch_size=_BATCH,
            recursion_depth=_RECURSIONS,
            damping=_DAMPING,
            scaling=_SCALE,
        ),
        "influence by Arnoldi, dattri": lambda: algorithm.IFAttributorArnoldi(
            task(penalised, cross_entropy),
            proj_dim=_PROJECTED,
            max_iter=_ITERATIONS,
            regularization=_DAMPING,
        ),
        "EK-FAC, dattri": lambda: algorithm.IFAttributorEKFAC(
            task(cross_entropy), damping=_DAMPING
        ),
    } | {f"TRAK of {size}, dattri": partial(trak, size) for size in _TRAK}
    found = {}
    for name, make in makers.items():
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
            way = make()
            way.cache(train)
            helps = way.attribute(test) if "TRAK" in name else way.attribute(train, test)
        found[name] = -helps.detach().numpy().T.astype(float)
    return found
