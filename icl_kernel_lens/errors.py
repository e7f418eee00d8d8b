"""The errors a user can meet. Each message says what must hold, what was found and where, and what to do."""

from __future__ import annotations


class LensError(Exception):
    """Base of every error this package raises on purpose."""


class TaskError(LensError, ValueError):
    """A task is unknown, or its examples, classes or label words do not fit together."""


class PromptError(LensError, ValueError):
    """Prompts cannot be built or do not fit the model: positions, label tokens, length."""


class ModelError(LensError, RuntimeError):
    """A model cannot be read: no attention hooks, rows that do not sum to one, wrong output."""


class LoadError(LensError, ValueError):
    """A model or a saved file cannot be loaded: absent, of the wrong kind, version or shape."""


class EvidenceMissing(LensError, KeyError):
    """An `Evidence` was read without what is asked of it now."""

    def __str__(self) -> str:  # KeyError would print the repr, quotes and all
        return str(self.args[0]) if self.args else ""


class ResultError(LensError, ValueError):
    """A result is asked for something it cannot give, or a folder holds something else."""


class RunError(LensError, RuntimeError):
    """A run cannot go on: memory, a checkpoint of another run, a process that was lost."""
