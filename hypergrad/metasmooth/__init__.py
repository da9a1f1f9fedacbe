"""Whether a hypergradient holds over a step that one would take: measured, and acted upon."""

from hypergrad.metasmooth.estimator import Metasmooth as Metasmooth
from hypergrad.metasmooth.estimator import MetasmoothState as MetasmoothState
from hypergrad.metasmooth.measured import Metasmoothness as Metasmoothness
from hypergrad.metasmooth.measured import metasmoothness as metasmoothness
