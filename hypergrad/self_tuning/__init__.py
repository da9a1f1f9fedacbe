"""Self-tuning networks: hyperparameters tuned while the weights are trained."""
