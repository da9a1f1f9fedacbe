"""The page of an attribution, and its data frame: from scores written by hand."""

import base64
import re

import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.data import Attribution, attribution_page

SCORES = jnp.asarray([[3.0, -2.0, 0.5, -0.1], [-1.0, -2.0, 4.0, 0.0]])
FOUND = Attribution(SCORES, jnp.asarray([0.2, 0.9]), None)
TEXTS = ["zero", "one <b>", "two", "three"]


def write(path, **change):
    given = {"examples": TEXTS, "queries": ["first", "second"]} | change
    examples, queries = given.pop("examples"), given.pop("queries")
    attribution_page(FOUND, path / "page.html", examples, queries, **given)
    return (path / "page.html").read_text(encoding="utf-8")


def numbers(section, kind):
    part = re.search(rf'class="{kind}".*?</div></div>|class="{kind}".*', section, re.S).group()
    part = part.split("<h3")[0]
    return [int(n) for n in re.findall(r"<figcaption>(\d+)", part)]


def test_helpful_and_harmful_examples_in_order(tmp_path):
    page = write(tmp_path, shown=2, captions=["a", "b", "c", "d"])
    mean, worst, other = page.split("<section>")[1:]
    assert "All 2 queries" in mean
    # The query with the larger loss comes first.
    assert "second" in worst
    assert "first" in other
    assert numbers(worst, "harm") == [2]
    assert numbers(other, "harm") == [0, 2]
    assert [m for m in re.findall(r"<figcaption>(\d+)", worst.split("most harmful")[0])] == [
        "1",
        "0",
    ]
    assert "one &lt;b&gt;" in page
    assert "· c" in page


def test_captions_are_those_of_the_places_whatever_their_labels(tmp_path):
    pandas = pytest.importorskip("pandas")
    named = pandas.Series(["a", "b", "c", "d"], index=[3, 2, 1, 0])
    assert write(tmp_path, captions=named) == write(tmp_path, captions=["a", "b", "c", "d"])


def test_pictures_are_in_the_file(tmp_path):
    pictures = np.linspace(0, 1, 4 * 6).reshape(4, 2, 3)
    page = write(tmp_path, examples=pictures, render=None)
    data = base64.b64decode(re.search(r"base64,([^\"]+)", page).group(1))
    image = pytest.importorskip("matplotlib.image")
    (tmp_path / "picture.png").write_bytes(data)
    read = image.imread(tmp_path / "picture.png")
    assert any(np.allclose(read, picture, atol=1 / 255) for picture in pictures)
    assert 'src="http' not in page


def test_the_frame_has_the_most_harmful_first():
    pytest.importorskip("pandas")
    assert list(FOUND.frame(1).index) == [2, 3, 0, 1]
    assert list(FOUND.frame()["score"]) == [2.25, 1.0, -0.05, -2.0]
    with pytest.raises(ValueError, match="query: expected a number from 0 to 1"):
        FOUND.frame(2)


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="examples: expected 4"):
        write(tmp_path, examples=["zero"])
    with pytest.raises(ValueError, match="captions: expected 4"):
        write(tmp_path, captions=["zero"])
    with pytest.raises(ValueError, match="shown: expected a positive"):
        write(tmp_path, shown=0)
