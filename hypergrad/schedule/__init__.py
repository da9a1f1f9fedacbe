"""Schedules of a training learned by metagradients: rates, decays, momenta, weights of batches."""

from hypergrad.schedule.learned import LearnedSchedules, Schedule
from hypergrad.schedule.learning import learn_schedules
from hypergrad.schedule.scales import Scale
from hypergrad.schedule.scheduled import scheduled

__all__ = ["LearnedSchedules", "Scale", "Schedule", "learn_schedules", "scheduled"]
