"""Implicit hypergradients of the network by torch, and by libraries on it.

Each function takes a `Case` of the network, the linear solver (`"neumann"` or `"cg"`), its number
of products and the step of the series, and returns a function without arguments that computes the
hypergradient, a list of arrays in the order of `jax.tree.leaves`.
`higher` is not among them: it unrolls, and differentiates no solution implicitly.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from benchmarks.problems import Case


class Network:
    """The case in torch: two losses of lists of tensors."""

    def __init__(self, case: Case) -> None:
        import torch

        def tensors(tree: Any) -> list:
            return [torch.tensor(np.asarray(a), requires_grad=True) for a in jax.tree.leaves(tree)]

        def batch(pair: tuple) -> tuple:
            x, y = (torch.tensor(np.asarray(a)) for a in pair)
            return x, y.long()

        self.torch = torch
        self.params, self.decay = tensors(case.params), tensors(case.hparams)
        self.inner_batch, self.outer_batch = batch(case.inner_batch), batch(case.outer_batch)

    def loss(self, params: Any, batch: tuple) -> Any:
        """Cross-entropy; a layer is a bias and a matrix, in this order."""
        h, labels = batch
        layers = list(zip(params[::2], params[1::2], strict=True))
        for bias, matrix in layers[:-1]:
            h = self.torch.tanh(self.torch.addmm(bias, h, matrix))
        logits = self.torch.addmm(layers[-1][0], h, layers[-1][1])
        return self.torch.nn.functional.cross_entropy(logits, labels)

    def inner(self, params: Any, decay: Any) -> Any:
        """Cross-entropy of the inner batch and the penalty."""
        penalty = sum((d.exp() * w**2).sum() for w, d in zip(params, decay, strict=True))
        return self.loss(params, self.inner_batch) + 0.5 * penalty

    def outer_gradient(self) -> tuple:
        """The cotangent of the adjoint system."""
        return self.torch.autograd.grad(self.loss(self.params, self.outer_batch), self.params)


def by_hand(case: Case, solver: str, products: int, step: float) -> Callable[[], list]:
    """As one would write it: the graph of the inner gradient kept, differentiated K times."""
    net = Network(case)
    torch = net.torch

    def neumann(product: Callable, g: tuple) -> list:
        total = g
        for _ in range(products):
            g = torch._foreach_sub(g, product(g), alpha=step)
            total = torch._foreach_add(total, g)
        return torch._foreach_mul(total, step)

    def dot(x: Any, y: Any) -> Any:
        return sum(torch.dot(a.ravel(), b.ravel()) for a, b in zip(x, y, strict=True))

    def cg(product: Callable, g: tuple) -> list:
        x, r, d, rr = [torch.zeros_like(a) for a in g], g, g, dot(g, g)
        for _ in range(products):
            image = product(d)
            alpha = rr / dot(d, image)
            x = torch._foreach_add(x, torch._foreach_mul(d, alpha))
            r = torch._foreach_sub(r, torch._foreach_mul(image, alpha))
            new = dot(r, r)
            d = torch._foreach_add(r, torch._foreach_mul(d, new / rr))
            rr = new
        return x

    solve = {"neumann": neumann, "cg": cg}[solver]

    def hypergradient() -> list:
        g = net.outer_gradient()
        slope = torch.autograd.grad(net.inner(net.params, net.decay), net.params, create_graph=True)
        product = partial(torch.autograd.grad, slope, net.params, retain_graph=True)
        q = solve(lambda v: product(grad_outputs=v), g)
        return [-a for a in torch.autograd.grad(slope, net.decay, q)]

    return hypergradient


def betty(case: Case, solver: str, products: int, step: float) -> Callable[[], list]:
    """Betty's hypergradient functions, called as its engine calls them but without the engine."""
    from betty.hypergradient.cg import cg
    from betty.hypergradient.neumann import neumann

    net = Network(case)
    inner = SimpleNamespace(
        paths=[],
        config=SimpleNamespace(
            neumann_iterations=products, neumann_alpha=step, cg_iterations=products, cg_alpha=1.0
        ),
        cur_batch=None,
        training_step_exec=lambda _: net.inner(net.params, net.decay),
        trainable_parameters=lambda: net.params,
        parameters=lambda: net.params,
    )
    outer = SimpleNamespace(trainable_parameters=lambda: net.decay)
    solve = {"neumann": neumann, "cg": cg}[solver]
    return lambda: solve(net.outer_gradient(), inner, outer)


def torchopt(case: Case, solver: str, products: int, step: float) -> Callable[[], list]:
    """TorchOpt's `custom_root` around parameters that are solved already."""
    from torchopt.diff.implicit import custom_root
    from torchopt.linear_solve import solve_cg, solve_inv

    net = Network(case)
    solve = {
        "neumann": lambda: solve_inv(ns=True, maxiter=products, alpha=step),
        "cg": lambda: solve_cg(maxiter=products, rtol=0.0, atol=0.0),
    }[solver]()

    def optimality(params: tuple, decay: tuple) -> tuple:
        return net.torch.func.grad(net.inner)(params, decay)

    @custom_root(optimality, argnums=1, solve=solve)
    def solution(params: tuple, decay: tuple) -> tuple:
        return params

    def hypergradient() -> list:
        params = solution(tuple(net.params), tuple(net.decay))
        return list(net.torch.autograd.grad(net.loss(params, net.outer_batch), net.decay))

    return hypergradient


def installed() -> dict[str, Callable]:
    """Those of the above that can run here, by name."""
    peers = {"torch": by_hand, "betty": betty, "torchopt": torchopt}
    return {name: peer for name, peer in peers.items() if find_spec("torch") and find_spec(name)}
