"""How programs are compiled in tests, which compile far more than they compute.

JAX reads `XLA_FLAGS` at its first computation; processes that a test starts inherit them.
"""

import jax

LEVEL = "--xla_backend_optimization_level="
#: Without LLVM's optimisations.
UNOPTIMISED = f"{LEVEL}0"
#: With the first of its three levels: compiled in three quarters of the time of all three.
SOMEWHAT = f"{LEVEL}1"
# JAX 0.12 knows neither of the two below, and an unknown flag ends the process.
OLDER = jax.__version_info__ < (0, 11)
#: Loops are written in LLVM's language at once, not by way of MLIR: a third less time.
DIRECT = "--xla_cpu_use_fusion_emitters=false" if OLDER else ""


def quick_to_compile(flags: str) -> str:
    """XLA's flags `flags`, with those that make compiling quick."""
    added = [flag for flag in (UNOPTIMISED, DIRECT) if flag and flag not in flags]
    return " ".join([flags, *added]).strip()


def somewhat_optimised(flags: str) -> str:
    """The same, for programs that compute as well as compile."""
    return quick_to_compile(flags).replace(UNOPTIMISED, SOMEWHAT)


def as_users(flags: str) -> str:
    """The same without what tests add."""
    return " ".join(flag for flag in flags.split() if flag not in (UNOPTIMISED, DIRECT))


def quick_to_trace() -> None:
    """Leave out of each program of this process what no test reads."""
    # Where in Python each operation comes from.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    if OLDER:
        # How it is divided among devices, of which there is one here. Tests of several start
        # processes, which take what users have.
        jax.config.update("jax_use_shardy_partitioner", False)
