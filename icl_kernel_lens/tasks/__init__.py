"""Tasks: demonstrations, label words and where they come from. No tokens."""

from icl_kernel_lens.tasks.load import load_task
from icl_kernel_lens.tasks.task import Episode, EpisodeSource, Example, Task
from icl_kernel_lens.tasks.template import Template

__all__ = ["Episode", "EpisodeSource", "Example", "Task", "Template", "load_task"]
