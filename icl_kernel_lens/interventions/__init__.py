"""Changes what a model reads or holds at the labels, and measures what becomes of its answer."""

from icl_kernel_lens.interventions.cuts import knock_out
from icl_kernel_lens.interventions.patch import patch_labels
from icl_kernel_lens.interventions.substitute import substitute_kernel
from icl_kernel_lens.interventions.swap import swap_values
from icl_kernel_lens.interventions.verify import verify_interventions

__all__ = ["knock_out", "patch_labels", "substitute_kernel", "swap_values", "verify_interventions"]
