"""Data sets of the experiments. Nothing is kept in the repository.

What scikit-learn bundles comes from there (`tabular`). Larger sets are read from
`$HYPERGRAD_DATA/<set>/`, or a system package, or are downloaded once into that folder
(`~/.cache/hypergrad` if the variable is not set), their contents checked by SHA-256.
"""

from experiments.data.arrests import arrests
from experiments.data.fashion_mnist import fashion_mnist
from experiments.data.lcbench import LCBench
from experiments.data.mlbench import mlbench
from experiments.data.omniglot import omniglot
from experiments.data.steplaw import steplaw
from experiments.data.tabular import Data, Part, tabular

__all__ = [
    "Data",
    "LCBench",
    "Part",
    "arrests",
    "fashion_mnist",
    "mlbench",
    "omniglot",
    "steplaw",
    "tabular",
]
