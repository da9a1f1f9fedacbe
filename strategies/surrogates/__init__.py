"""Models of the objective, fitted to observations: what Bayesian searchers reason with."""
