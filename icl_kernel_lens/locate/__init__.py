"""Where the kernel-regression heads are: selection, nulls, false discovery rate, causal confirmation."""

from icl_kernel_lens.locate.circuit import necessity_and_sufficiency
from icl_kernel_lens.locate.locate import locate_heads
from icl_kernel_lens.locate.stability import stability

__all__ = ["locate_heads", "necessity_and_sufficiency", "stability"]
