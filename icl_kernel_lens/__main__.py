"""`python -m icl_kernel_lens` runs the command line."""

from icl_kernel_lens.cli.program import run

run()
