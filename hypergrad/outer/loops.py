"""Compiled branches and loops over pytrees that hold more than arrays."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax


def while_loop(condition: Callable[[Any], Any], body: Callable[[Any], Any], start: Any) -> Any:
    """As `jax.lax.while_loop`; leaves that are not arrays are those of `start`."""
    dynamic, static = eqx.partition(start, eqx.is_array)
    end = jax.lax.while_loop(
        lambda carry: condition(eqx.combine(carry, static)),
        lambda carry: eqx.filter(body(eqx.combine(carry, static)), eqx.is_array),
        dynamic,
    )
    return eqx.combine(end, static)


def scan(step: Callable[[Any, Any], tuple], start: Any, each: Any) -> tuple[Any, Any]:
    """As `jax.lax.scan`; leaves of the carry that are not arrays are those of `start`."""
    dynamic, static = eqx.partition(start, eqx.is_array)

    def filtered(carry: Any, x: Any) -> tuple[Any, Any]:
        carry, out = step(eqx.combine(carry, static), x)
        return eqx.filter(carry, eqx.is_array), out

    end, outs = jax.lax.scan(filtered, dynamic, each)
    return eqx.combine(end, static), outs


def cond(choice: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """`yes()` or `no()`, computing only that one; leaves that are not arrays belong to both."""
    static: Any = None

    def arrays(branch: Callable[[], Any]) -> Callable[[], Any]:
        def traced() -> Any:
            nonlocal static
            dynamic, static = eqx.partition(branch(), eqx.is_array)
            return dynamic

        return traced

    chosen = jax.lax.cond(choice, arrays(yes), arrays(no))
    return eqx.combine(chosen, static)
