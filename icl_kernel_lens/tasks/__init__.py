"""Tasks: demonstrations, label words and where they come from."""

from icl_kernel_lens.tasks.load import load_task
from icl_kernel_lens.tasks.source import EpisodeSource
from icl_kernel_lens.tasks.task import Task

__all__ = ["EpisodeSource", "Task", "load_task"]
