"""The search layer: one space, one searcher, three engines."""
