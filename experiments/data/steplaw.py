"""Trainings of language models at 17 sizes, 12 learning rates and 10 batch sizes.

Released with "Predictable Scale: Part I" (Li et al. 2025). Its repository states no licence: the
file is read, and is never part of anything here.
"""

import csv
import io
import math

from experiments.data.files import read

#: The batch size of the table is in sequences of so many tokens.
SEQUENCE = 2048
_URL = "https://raw.githubusercontent.com/step-law/steplaw/main/data/dense_lr_bs_loss.csv"
_SHA256 = "9e46181076c04d450294d75dfe6f72adc416e231e154a07b337e378f9410002c"


def steplaw() -> list[dict[str, float]]:
    """One row for each training that ended with a finite loss.

    `N`: parameters without embeddings; `D`: tokens; `lr`: peak learning rate; `batch`: tokens;
    `value`: smoothed training loss at the end.

    **Raises:** `FileNotFoundError` if the table is neither here nor can be downloaded.
    """
    text = read("steplaw/dense_lr_bs_loss.csv", url=_URL, sha256=_SHA256).decode()
    rows = [
        {
            "N": float(row["N"]),
            "D": float(row["D"]),
            "lr": float(row["lr"]),
            "batch": float(row["bs"]) * SEQUENCE,
            "value": float(row["smooth loss"]),
        }
        for row in csv.DictReader(io.StringIO(text))
    ]
    return [row for row in rows if math.isfinite(row["value"])]
