"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 70,000 grey images of clothes, 10 classes."""

import numpy as np

from experiments.data.files import read
from experiments.data.tabular import Part

SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def fashion_mnist() -> tuple[Part, Part]:
    """The 60,000 training and the 10,000 test examples.

    **Returns:** two `Part`s, `x` uint8 of shape `(n, 28, 28)`, `y` uint8 of shape `(n,)`.

    **Raises:** `FileNotFoundError` if the set is neither on this machine nor can be downloaded.
    """
    parts = []
    for prefix in ("train", "t10k"):
        images = np.frombuffer(_file(f"{prefix}-images-idx3-ubyte"), np.uint8, offset=16)
        labels = np.frombuffer(_file(f"{prefix}-labels-idx1-ubyte"), np.uint8, offset=8)
        parts.append(Part(images.reshape(-1, 28, 28), labels))
    return parts[0], parts[1]


def _file(name: str) -> bytes:
    return read(
        f"fashion-mnist/{name}.gz",
        url=f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}.gz",
        sha256=SHA256[name],
        system=f"/usr/share/datasets/fashion-mnist/{name}.gz",
        hint="On Debian and Ubuntu: apt-get install dataset-fashion-mnist.",
    )
