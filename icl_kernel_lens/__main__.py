"""`python -m icl_kernel_lens`: the command line."""

import sys

from icl_kernel_lens.cli import main

sys.exit(main())
