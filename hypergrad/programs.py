"""Traced programs, as they are walked through in search of something."""

from collections.abc import Iterator

import jax
from jax.extend.core import Jaxpr, JaxprEqn


def parts(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The programs inside one operation: bodies of loops, branches, calls, custom rules."""
    for leaf in jax.tree.leaves(list(eqn.params.values())):
        part = getattr(leaf, "jaxpr", leaf)
        if isinstance(part, Jaxpr):
            yield part
