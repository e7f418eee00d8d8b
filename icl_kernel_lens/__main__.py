"""`python -m icl_kernel_lens`: the command line."""

from icl_kernel_lens.cli import run

run()
