"""Data loaders, those of larger sets only where the set is on this machine."""

import gzip
import hashlib
import importlib
import os
import urllib.error

import numpy as np
import pytest

from experiments.data import LCBench, arrests, fashion_mnist, mlbench, omniglot, tabular
from experiments.data import files as files_module
from experiments.data.files import data_folder, read
from experiments.data.rda import data_frame

#: The module, whose name its function has taken.
ARRESTS = importlib.import_module("experiments.data.arrests")
CONTENTS = b"some numbers"
SHA256 = hashlib.sha256(CONTENTS).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERGRAD_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def offline(monkeypatch):
    def refuse(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(files_module.urllib.request, "urlopen", refuse)


def here(relative, system=None):
    """Skip where a set is absent: the tests must pass without any download."""
    places = [data_folder() / relative, *([system] if system else [])]
    if not any(os.path.exists(place) for place in places):
        pytest.skip(f"{relative} is not on this machine")


def test_a_file_is_read_from_the_data_folder(folder, offline):
    (folder / "set").mkdir()
    (folder / "set" / "a.gz").write_bytes(gzip.compress(CONTENTS))
    assert read("set/a.gz", url="http://x", sha256=SHA256) == CONTENTS


def test_a_file_is_read_from_the_system(folder, offline, tmp_path):
    (tmp_path / "a").write_bytes(CONTENTS)
    assert read("set/a", url="http://x", sha256=SHA256, system=str(tmp_path / "a")) == CONTENTS


def test_a_file_that_is_nowhere_says_where_it_was_looked_for(folder, offline):
    with pytest.raises(
        FileNotFoundError, match=rf"set/a .*{folder}.*http://x.*no network.*try apt"
    ):
        read("set/a", url="http://x", sha256=SHA256, hint="try apt")


def test_wrong_contents_are_refused(folder, offline):
    (folder / "a").write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"expected contents with SHA-256 {SHA256}"):
        read("a", url="http://x", sha256=SHA256)


def test_a_download_is_kept(folder, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(CONTENTS)
    assert read("set/a", url=source.as_uri(), sha256=SHA256) == CONTENTS
    assert (folder / "set" / "a").read_bytes() == CONTENTS


def test_a_download_with_wrong_contents_is_not_kept(folder, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"an error page")
    with pytest.raises(ValueError, match="expected contents"):
        read("set/a", url=source.as_uri(), sha256=SHA256)
    assert not (folder / "set").exists()


def test_tabular_parts_are_disjoint_stratified_and_seeded():
    data = tabular("digits", seed=1)
    assert [len(part.y) for part in data] == [898, 449, 450]
    assert sum(len(part.x) for part in data) == 1797
    shares = [np.bincount(part.y) / len(part.y) for part in data]
    assert np.abs(shares[0] - shares[1]).max() < 0.01
    np.testing.assert_array_equal(data.train.x, tabular("digits", seed=1).train.x)
    assert not np.array_equal(data.train.x, tabular("digits", seed=2).train.x)


def test_regression_data_need_no_classes():
    assert [len(part.y) for part in tabular("diabetes", fractions=(0.3, 0.2))] == [220, 133, 89]


def test_fashion_mnist():
    name = "train-images-idx3-ubyte.gz"
    here(f"fashion-mnist/{name}", f"/usr/share/datasets/fashion-mnist/{name}")
    train, test = fashion_mnist()
    assert (train.x.shape, test.x.shape) == ((60000, 28, 28), (10000, 28, 28))
    np.testing.assert_array_equal(np.bincount(train.y), [6000] * 10)
    np.testing.assert_array_equal(np.bincount(test.y), [1000] * 10)


def test_arrests():
    here("arrests/arrests.zip", ARRESTS._installed())
    data = arrests()
    assert data.x.shape == (5226, 7)
    assert int(data.y.sum()) == 4334
    assert int(data.x[:, 0].sum()) == 1288  # black
    assert (data.x[:, 2].min(), data.x[:, 2].max()) == (12, 66)  # age


@pytest.mark.parametrize(
    ("name", "shape", "positive"),
    [("Ionosphere", (351, 33), 225), ("PimaIndiansDiabetes", (768, 8), 268)],
)
def test_mlbench(name, shape, positive):
    file = f"mlbench/{name}.rda"
    here(file, f"/usr/lib/R/site-library/mlbench/data/{name}.rda")
    data = mlbench(name)
    assert data.x.shape == shape
    assert int((data.y == 1).sum()) == positive
    assert int((data.y == -1).sum()) == shape[0] - positive
    assert np.isfinite(data.x).all()


def saved_frame():
    """What `save` writes, without compression, of a frame of two columns: numbers, a factor."""
    integers = lambda *n: np.array(n, ">i4").tobytes()  # noqa: E731
    text = lambda s: integers(9, len(s)) + s.encode()  # noqa: E731
    tag = lambda s: integers(1) + text(s)  # noqa: E731
    strings = lambda *s: integers(16, len(s)) + b"".join(map(text, s))  # noqa: E731
    pair, end = integers(2 | 1 << 10), integers(254)
    factor = integers(13 | 1 << 9, 2, 2, -(2**31)) + pair + tag("levels") + strings("no", "yes")
    columns = integers(14, 2) + np.array([0.5, -2.0], ">f8").tobytes() + factor + end
    frame = integers(19 | 1 << 9, 2) + columns + pair + tag("names") + strings("x", "kind") + end
    return b"RDX2\nX\n" + integers(2, 0, 0) + pair + tag("frame") + frame + end


def test_a_frame_saved_by_r():
    frame = data_frame(gzip.compress(saved_frame()))
    np.testing.assert_array_equal(frame["x"], [0.5, -2.0])
    assert frame["kind"].tolist() == ["yes", ""]
    with pytest.raises(ValueError, match=r"save.*received b'x,y"):
        data_frame(b"x,y,z\n1,2,3")


def test_omniglot():
    here("omniglot/images_background_small1.zip")
    alphabets = omniglot(size=14)
    assert len(alphabets) == 8
    assert sum(len(characters) for characters in alphabets.values()) == 242
    for characters in alphabets.values():
        assert characters.shape[1:] == (20, 14, 14)
        assert 0.01 < characters.mean() < 0.2


def test_lcbench_learns_with_epochs_and_names_an_unknown_task():
    here("lcbench/model.onnx")
    pytest.importorskip("onnxruntime")
    surrogate = LCBench()
    assert len(surrogate.tasks) == 34
    middle = {name: (low + high) / 2 for name, (low, high, *_) in surrogate.space.items()}
    out = surrogate("167104", [{**middle, "learning_rate": 1e-3, "max_dropout": 0.1}] * 2, [1, 52])
    assert out["val_accuracy"][1] > out["val_accuracy"][0]
    assert out["time"][1] > 10 * out["time"][0]
    with pytest.raises(ValueError, match="Unknown task '1'"):
        surrogate("1", [middle], [1])
