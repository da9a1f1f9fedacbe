"""Many trials in one program: populations under `vmap`, rungs and population-based training."""

from strategies.lazy import attach_stub

# A process that only keeps checkpoints, a trial of Ray, needs no JAX.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
