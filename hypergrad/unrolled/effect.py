"""What the end of an inner run depends on, found by tracing."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from hypergrad.paths import Reach, inputs_of, leaf_names, refuse_biased, require_differentiable
from hypergrad.unrolled.run import Dynamics


def reaches(
    run: Dynamics,
    first: int,
    last: int,
    *,
    from_start: bool = True,
    forward: bool = False,
) -> dict[str, Reach]:
    """What each hyperparameter does to the outer loss at the run's end, found by tracing.

    **Arguments:**

    - `run`: the inner run.
    - `first`, `last`: the steps that are differentiated, without `last`.
    - `from_start`: the start is differentiated, too.
    - `forward`: trace in forward mode (line searches have no reverse, `jax.custom_vjp` no forward).

    **Returns:** for each a `Reach`, whose `inner` means the whole run.
    """
    names = leaf_names(run.h)

    def end(h: PyTree) -> Array:
        def body(carry: tuple, t: Array) -> tuple:
            return run(carry[0], carry[1], h, t), None

        carry = (run.start(h) if from_start else run.x, run.rest)
        if last - first == 1:
            # Tracing a loop finds what reaches the end after any number of steps.
            carry = run(carry[0], carry[1], h, jnp.asarray(first))
        else:
            carry, _ = lax.scan(body, carry, jnp.arange(first, last))
        return run.outer_loss(carry[0], h)

    # Nothing is run. A derivative is structurally zero if, in the traced program, it does not
    # depend on the tangent (on the cotangent).
    if forward:
        pushed = jax.make_jaxpr(lambda h, tangent: jax.jvp(end, (h,), (tangent,))[1])
        seen = inputs_of(pushed(run.h, run.h).jaxpr, 0)[len(names) :]
    else:
        pulled = jax.make_jaxpr(lambda h, cotangent: jax.vjp(end, h)[1](cotangent))
        jaxpr = pulled(run.h, jax.eval_shape(end, run.h)).jaxpr
        seen = [inputs_of(jaxpr, i)[-1] for i in range(len(names))]
    read = seen if all(seen) else inputs_of(jax.make_jaxpr(end)(run.h).jaxpr, 0)
    hidden = run.hidden()
    return {
        name: Reach(inner=ok, outer=False, used=used, hidden=hidden[name])
        for name, ok, used in zip(names, seen, read, strict=True)
    }


def require_effect(
    run: Dynamics,
    first: int,
    last: int,
    *,
    estimator: str,
    from_start: bool = True,
    forward: bool = False,
    unseen: bool = False,
) -> Dynamics:
    """Refuse hyperparameters of which there is no derivative, or a part only.

    **Arguments:** as for `reaches`, and

    - `estimator`: its name, for the message.
    - `unseen`: hold such hyperparameters constant instead, as long as there are others.

    **Returns:** the run, with the hyperparameters that are to be differentiated.

    **Raises:** `ValueError` naming each leaf whose derivative is structurally zero, or biased
    (`BilevelProblem.biased`).
    """
    require_differentiable(jax.tree.leaves(run.h))
    found = reaches(run, first, last, from_start=from_start, forward=forward)
    dead = [name for name, reach in found.items() if not reach.seen]
    kept = run.keeps_biased
    left_out = [name for name, reach in found.items() if reach.biased and not kept] + dead
    if not dead or (unseen and len(left_out) < len(found)):
        refuse_biased(found, estimator, kept=kept, unseen=unseen and len(left_out) < len(found))
        run = run.without(left_out)
        run.partial = kept and any(reach.biased for reach in found.values())
        return run
    whole = {} if from_start else reaches(run, first, last, forward=forward)
    if not from_start and all(whole[name].seen for name in dead):
        reason = (
            "it acts through the start only, which is held constant here. `Unrolled` from a cold "
            "start can see it"
        )
    else:
        reason = (
            "neither the steps nor the outer loss have a derivative in it. A threshold, a rounding "
            "or a stop_gradient hides it (relax it), or nothing reads it (leave it to a searcher)"
        )
        if flat := run.flat_operations():
            reason += (
                f". The training step applies {', '.join(flat)}, whose derivative is zero: "
                "optimizers that move by signs or rounded numbers hide what their gradient reads. "
                "Expected one that is smooth in the gradient, such as optax.sgd or optax.adam"
            )
    listed = ", ".join(repr(name) for name in dead)
    raise ValueError(f"{estimator} cannot see hyperparameter {listed}: {reason}.")
