"""Where the kernel-regression heads are: selection, nulls, false discovery rate, causal confirmation."""

from icl_kernel_lens.locate.ablation import ablation_curves
from icl_kernel_lens.locate.search import locate_heads, stability

__all__ = ["ablation_curves", "locate_heads", "stability"]
