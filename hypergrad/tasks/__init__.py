"""Hyperparameters tuned across tasks: one value that serves tasks never seen."""

from hypergrad.tasks.bound import task_bound
from hypergrad.tasks.jumps import Break, find_breaks
from hypergrad.tasks.problem import TaskProblem, UnseenTasks, over_tasks

__all__ = ["Break", "TaskProblem", "UnseenTasks", "find_breaks", "over_tasks", "task_bound"]
