"""The one place that runs a model to change it: patching, knock-outs, swaps and substitutions."""

from icl_kernel_lens.interventions.knock_out import knock_out
from icl_kernel_lens.interventions.patch import direct_effect, patch_labels
from icl_kernel_lens.interventions.routes import routes
from icl_kernel_lens.interventions.substitute import substitute_kernel
from icl_kernel_lens.interventions.swap import prediction, swap_values

__all__ = [
    "direct_effect",
    "knock_out",
    "patch_labels",
    "prediction",
    "routes",
    "substitute_kernel",
    "swap_values",
]
