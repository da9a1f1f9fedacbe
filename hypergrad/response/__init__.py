"""What hypernetworks and self-tuning networks share: learning a response around hyperparameters."""
