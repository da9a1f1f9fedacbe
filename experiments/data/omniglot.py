"""Omniglot's two small background sets (Lake, Salakhutdinov and Tenenbaum 2015)."""

import io
import zipfile
from collections import defaultdict

import numpy as np
from PIL import Image

from experiments.data.files import read

SHA256 = {
    "images_background_small1": "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
    "images_background_small2": "3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f",
}


def omniglot(size: int = 28) -> dict[str, np.ndarray]:
    """Handwritten characters by alphabet, those that are in both sets counted once.

    Split by alphabet, never by character: the styles of one alphabet are alike.

    **Arguments:**

    - `size`: side of the pictures in pixels (the originals have 105).

    **Returns:** alphabet -> float32 array of shape `(characters, 20 drawings, size, size)`, ink 1
    on paper 0: 8 alphabets with 242 characters.

    **Raises:** `FileNotFoundError` if the sets are neither on this machine nor can be downloaded.
    """
    drawings: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for name in SHA256:
        contents = read(
            f"omniglot/{name}.zip",
            url=f"https://raw.githubusercontent.com/brendenlake/omniglot/master/python/{name}.zip",
            sha256=SHA256[name],
        )
        seen = frozenset(drawings)
        with zipfile.ZipFile(io.BytesIO(contents)) as archive:
            for member in sorted(archive.namelist()):
                if not member.endswith(".png"):
                    continue
                _, alphabet, character, _ = member.split("/")
                if alphabet not in seen:
                    picture = Image.open(io.BytesIO(archive.read(member))).convert("L")
                    small = picture.resize((size, size), Image.Resampling.BOX)
                    ink = 1 - np.asarray(small, np.float32) / 255
                    drawings[alphabet][character].append(ink)
    return {
        alphabet: np.stack([np.stack(pictures) for _, pictures in sorted(characters.items())])
        for alphabet, characters in drawings.items()
    }
