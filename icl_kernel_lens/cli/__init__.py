"""The command line, `icl-kernel-lens`: one typed function a command, one table of what each of them writes."""

from icl_kernel_lens.cli.program import main, run

__all__ = ["main", "run"]
