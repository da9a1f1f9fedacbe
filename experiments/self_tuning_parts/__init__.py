"""What `self_tuning` and `schedules` are made of: task, trainings, self-tuning, rivals."""
