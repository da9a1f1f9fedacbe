"""What each array of a model is multiplied by, against the published tables."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.transfer import Exponents, Factors, infer


def shapes(width, wide=None):
    """Flax's layout; `wide` is the second hidden layer's."""
    wide = width if wide is None else wide
    table = {
        "in": (8, width),
        "in_bias": (width,),
        "mid": (width, wide),
        "out": (wide, 3),
        "out_bias": (3,),
    }
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in table.items()}


def rates(rule):
    return {path.strip("[']"): f.rate for path, f in rule.factors.items()}


def roles(rule):
    return {leaf.path: leaf.role for leaf in rule.leaves}


def test_adam_as_in_the_package_of_mup():
    # mup 1.0, optim.py: matrix-like rates divided by the growth of fan-in, decays multiplied by it.
    rule = infer(shapes(64), shapes(128, 256))
    assert rates(rule) == {"in": 1, "in_bias": 1, "mid": 1 / 2, "out": 1, "out_bias": 1}
    found = rule.factors
    assert found["['mid']"].decay == 2
    assert found["['mid']"].init == 2**-0.5
    # layer.py: the readout's input is divided by its growth, its values begin as at the base.
    assert found["['out']"] == Factors(forward=1 / 4)
    assert found["['out_bias']"] == Factors()


def test_sgd_as_in_the_package_of_mup():
    # vector-like times their growth, matrix-like divided by growth of fan-in over that of fan-out.
    rule = infer(shapes(64), shapes(128, 512), optimizer="sgd")
    assert rates(rule) == {"in": 2, "in_bias": 2, "mid": 8 / 2, "out": 8, "out_bias": 1}
    assert all(f.rate * f.decay == 1 for f in rule.factors.values())


def test_unit_scaling_keeps_values_of_size_one():
    rule = infer(shapes(64), shapes(256), kind="u-mup", decay="unchanged")
    found = rule.factors
    assert found["['in']"] == Factors(rate=0.5)
    assert found["['mid']"] == Factors(forward=0.5, rate=0.5)
    assert found["['out']"] == Factors(forward=0.25)


@pytest.mark.parametrize(("kind", "alpha"), [("depth-mup", 0.5), ("completep", 1.0)])
def test_depth(kind, alpha):
    rule = infer(shapes(64), shapes(256), kind=kind, depth=(2, 32), blocks="mid")
    found = rule.factors
    assert rule.branch == 16**-alpha
    assert found["['mid']"].rate == pytest.approx(16 ** (alpha - 1) / 4)
    assert found["['in']"].rate == found["['out']"].rate == 1
    if kind == "completep":
        assert found["['mid']"].epsilon == found["['in']"].epsilon == 1 / 64
        assert found["['mid']"].decay == 4
    assert rule.at(shapes(64), depth=2).branch == 1


def test_gradient_steps_balance_depth():
    rule = infer(
        shapes(64), shapes(128), kind="depth-mup", optimizer="sgd", depth=(2, 8), blocks="mid"
    )
    assert rates(rule)["mid"] == 1


def test_spectral_norms():
    # √(fan-out / fan-in) of the array as the model reads it, for updates of norm one.
    small, large = shapes(64), shapes(128, 512)
    rule = infer(small, large, optimizer="spectral")
    for path, factor in rule.factors.items():
        a, b = (tree[path.strip("[']")].shape for tree in (small, large))
        if len(a) == 2:
            ratio = np.sqrt(b[1] / b[0] * a[0] / a[1])
            assert factor.rate * factor.forward == pytest.approx(ratio)


def test_muon_of_optax_brings_its_own_shape():
    rule = infer(shapes(64), shapes(128, 512), optimizer="muon")
    # √(512/128) is what the law asks for and what optax multiplies by; the base has 1 and 1.
    assert rates(rule) == {"in": 1, "in_bias": 1, "mid": 1, "out": 1, "out_bias": 1}
    numbers = rule.muon_leaves(shapes(64))
    assert numbers["in"] is None
    assert numbers["mid"].output_axis == (1,)


def test_decay_rules():
    make = lambda decay: infer(shapes(64), shapes(256), decay=decay).factors["['mid']"].decay  # noqa: E731
    assert [make("product"), make("sqrt"), make("unchanged")] == [4, 2, 1]


def test_exponents_of_ones_own():
    rule = infer(shapes(64), shapes(256), kind={"mid": Exponents(init=-0.5, rate=-1, decay=0.5)})
    assert rule.factors["['mid']"] == Factors(init=0.5, rate=0.25, decay=2)
    assert rule.factors["['in']"] == Factors()
    with pytest.raises(ValueError, match="'kind': expected patterns"):
        infer(shapes(64), shapes(256), kind={"middle": Exponents()})


def test_orientation_of_equinox():
    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        deep: eqx.nn.Conv2d
        cell: eqx.nn.LSTMCell
        embed: eqx.nn.Embedding
        head: eqx.nn.Linear

    def net(width):
        keys = jax.random.split(jax.random.key(0), 5)
        return Net(
            eqx.nn.Conv2d(1, width, 3, key=keys[0]),
            eqx.nn.Conv2d(width, width, 3, key=keys[1]),
            eqx.nn.LSTMCell(5, width, key=keys[2]),
            eqx.nn.Embedding(7, width, key=keys[3]),
            eqx.nn.Linear(width, 1, key=keys[4]),
        )

    small, large = (eqx.filter_eval_shape(net, width) for width in (4, 12))
    rule = infer(small, large)
    found = roles(rule)
    assert found[".conv.weight"] == found[".cell.weight_ih"] == found[".embed.weight"] == "input"
    assert found[".deep.weight"] == found[".cell.weight_hh"] == "hidden"
    assert found[".head.weight"] == "output"
    assert found[".head.bias"] == "fixed"
    assert found[".conv.bias"] == "vector"
    assert rule.factors[".cell.weight_hh"].rate == 1 / 3


def test_orientation_of_flax():
    linen = pytest.importorskip("flax.linen")
    nnx = pytest.importorskip("flax.nnx")

    def layers(width):
        net = linen.Sequential([linen.Conv(width, (3, 3)), linen.Dense(width), linen.Dense(2)])
        return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))

    found = list(roles(infer(layers(4), layers(8))).values())
    assert found == ["vector", "input", "vector", "hidden", "fixed", "output"]

    def heads(width):
        net = linen.MultiHeadDotProductAttention(num_heads=width // 4, qkv_features=width)
        return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, width)))

    kernels = {r for path, r in roles(infer(heads(8), heads(16))).items() if "kernel" in path}
    assert kernels == {"hidden"}

    def with_nnx(width):
        return nnx.state(
            nnx.eval_shape(
                lambda: nnx.Sequential(
                    nnx.Linear(3, width, rngs=nnx.Rngs(0)),
                    nnx.Linear(width, width, rngs=nnx.Rngs(0)),
                    nnx.Linear(width, 2, rngs=nnx.Rngs(0)),
                )
            ),
            nnx.Param,
        )

    found = roles(infer(with_nnx(4), with_nnx(8)))
    kernels = [role for path, role in found.items() if "kernel" in path]
    assert kernels == ["input", "hidden", "output"]


def test_orientation_of_kernels_that_begin_with_their_channels():
    def net(width):
        channels = {"stem": (width, 3), "deep": (2 * width, width), "last": (7, width)}
        return {k: jax.ShapeDtypeStruct((*v, 3, 3), jnp.float32) for k, v in channels.items()}

    rule = infer(net(8), net(16))
    assert roles(rule) == {"['deep']": "hidden", "['last']": "output", "['stem']": "input"}
    assert (rule.leaves[0].fan_in, rule.leaves[0].fan_out) == ((1,), (0,))


def test_experts():
    def experts(width):
        table = {"router": (width, 4), "up": (4, width, 2 * width), "down": (4, 2 * width, width)}
        return {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in table.items()}

    found = roles(infer(experts(8), experts(16)))
    assert found == {"['down']": "hidden", "['router']": "output", "['up']": "hidden"}


def test_more_experts_in_wider_models():
    def experts(width):
        return {"up": jax.ShapeDtypeStruct((width // 2, width, 2 * width), jnp.float32)}

    with pytest.raises(ValueError, match="'hidden' takes the last two"):
        infer(experts(8), experts(16))
    rule = infer(experts(8), experts(16), roles={"up": "hidden"})
    assert rule.factors["['up']"] == infer(shapes(8), shapes(16)).factors["['mid']"]
    assert rule.leaves[0].copies == (0,)
    assert rule.at(experts(32)).factors["['up']"].rate == 1 / 4


def test_what_is_refused():
    with pytest.raises(ValueError, match="expected shapes that grow from 'small', received the s"):
        infer(shapes(64), shapes(64))
    with pytest.raises(ValueError, match="expected axes that grow"):
        infer(shapes(64), shapes(128, 32))
    with pytest.raises(ValueError, match="received other arrays"):
        infer(shapes(64), {"in": jnp.zeros((8, 64))})
    with pytest.raises(ValueError, match=r"stated for \(adam\)"):
        infer(shapes(64), shapes(128), kind="u-mup", optimizer="sgd")
    with pytest.raises(ValueError, match="'blocks'"):
        infer(shapes(64), shapes(128), kind="completep", depth=(2, 4))
    with pytest.raises(ValueError, match="'depth': expected one of depth-mup"):
        infer(shapes(64), shapes(128), depth=(2, 4))
    with pytest.raises(ValueError, match="'roles': expected patterns"):
        infer(shapes(64), shapes(128), roles={"nothing": "output"})
    with pytest.raises(ValueError, match="in all axes but"):
        infer(shapes(64), shapes(128)).at({**shapes(64), "in": jnp.zeros((9, 64))})
    table = jnp.zeros((8, 4))
    tied = {"embed": table, "unembed": table}
    with pytest.raises(ValueError, match="tied leaves"):
        infer(tied, {"embed": jnp.zeros((8, 8)), "unembed": jnp.zeros((8, 8))})


def test_a_vector_that_is_a_readout():
    rule = infer(
        {"w": jnp.zeros(4), "v": jnp.zeros(4)},
        {"w": jnp.zeros(8), "v": jnp.zeros(8)},
        roles={"w": "output"},
    )
    assert rule.factors["['w']"].forward == 0.5
    assert rule.factors["['v']"].forward == 1
