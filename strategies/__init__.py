"""The search layer: one space, one searcher, three engines."""

from strategies.lazy import attach_stub

# `import strategies` loads no engine and no searcher.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
