"""Hypergradients for bilevel hyperparameter optimization in JAX."""
