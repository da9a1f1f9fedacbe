"""LCBench (Zimmer, Lindauer and Hutter 2021) as a surrogate: learning curves of 34 data sets.

The surrogate is the network of YAHPO Gym (Pfisterer et al. 2022) in ONNX form.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.data.files import read

SHA256 = {
    "model.onnx": "b45c0d85ae39abf8820c8bea5ac82f415763afcbaf3b725e36af452b09cb6dcd",
    "encoding.json": "d8af928f412bbeb07e58ecd69877fcab35fbc595333d1c1c3f76120d2f2508da",
    "config_space.json": "4d1c78a91429b4a37628e13f286cf1abe15f778a09722a4c01714f2d72a8200d",
}
# The network's own order; any other order gives plausible nonsense.
INPUTS = (
    "epoch",
    "batch_size",
    "learning_rate",
    "momentum",
    "weight_decay",
    "num_layers",
    "max_units",
    "max_dropout",
)
OUTPUTS = (
    "time",
    "val_accuracy",
    "val_cross_entropy",
    "val_balanced_accuracy",
    "test_cross_entropy",
    "test_balanced_accuracy",
)


class LCBench:
    """Trainings of small networks, answered by a surrogate.

    - `tasks`: the 34 OpenML task numbers, as strings.
    - `space`: name -> `(low, high, log, integer)` for each hyperparameter but the epoch, which runs
      from 1 to 52.

    **Raises:** `FileNotFoundError` if the surrogate is neither here nor can be downloaded.
    """

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(_file("model.onnx"), options)
        self._codes = json.loads(_file("encoding.json"))["OpenML_task_id"]
        domains = {
            domain["name"]: domain
            for domain in json.loads(_file("config_space.json"))["hyperparameters"]
        }
        self.tasks = tuple(domains["OpenML_task_id"]["choices"])
        self.space = {
            name: (
                domains[name]["lower"],
                domains[name]["upper"],
                domains[name]["log"],
                domains[name]["type"] == "uniform_int",
            )
            for name in INPUTS[1:]
        }

    def __call__(
        self, task: str, configs: Sequence[Mapping[str, float]], epochs: Sequence[float]
    ) -> dict[str, np.ndarray]:
        """What the trainings give.

        **Arguments:**

        - `task`: one of `tasks`.
        - `configs`: values of all hyperparameters, natural units.
        - `epochs`: for each configuration, after how many epochs; fractions are interpolated.

        **Returns:** `time` (s), `val_accuracy` (%), `val_cross_entropy`, `val_balanced_accuracy`,
        `test_cross_entropy`, `test_balanced_accuracy`, each of shape `(len(configs),)`.

        **Raises:** `ValueError` for an unknown task, `KeyError` for a missing hyperparameter.
        """
        if task not in self.tasks:
            raise ValueError(f"Unknown task {task!r}; expected one of {', '.join(self.tasks)}.")
        rows = [
            [epoch, *(config[name] for name in INPUTS[1:])]
            for config, epoch in zip(configs, epochs, strict=True)
        ]
        codes = np.full((len(rows), 1), self._codes[task], np.int32)
        numbers = np.asarray(rows, np.float32)
        (out,) = self._session.run(None, {"x_cat": codes, "x_cont": numbers})
        return dict(zip(OUTPUTS, out.T, strict=True))


def _file(name: str) -> bytes:
    return read(
        f"lcbench/{name}",
        url=f"https://raw.githubusercontent.com/slds-lmu/yahpo_data/main/lcbench/{name}",
        sha256=SHA256[name],
    )
