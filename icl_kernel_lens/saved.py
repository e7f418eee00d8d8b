"""Reading any saved result back, whatever it is: a file says which class it is of."""

from __future__ import annotations

import os
from pathlib import Path

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.results import (
    ablation_curves,  # noqa: F401 (each defines results, which `Result.kinds` then knows)
    carried_influence,  # noqa: F401
    evidence,  # noqa: F401
    head_scores,  # noqa: F401
    label_coverage,  # noqa: F401
    label_influence,  # noqa: F401
    logit_attribution,  # noqa: F401
    patch_effects,  # noqa: F401
    saliency,  # noqa: F401
    stability,  # noqa: F401
    task_accuracy,  # noqa: F401
)
from icl_kernel_lens.results.base import Result
from icl_kernel_lens.theory import bayes, experiment, regression, theorem  # noqa: F401


@checked
def load(path: str | Path) -> Result:
    """Read one saved result of any class.

    Raises: LoadError: a folder, no file of ours, one of another format, or a damaged one.
    """
    if os.path.isdir(path):
        raise LoadError(
            f"one result is one file (*.safetensors); {path} is a folder. To see what a command wrote into it: "
            f"icl-kernel-lens show {path}",
            code="file-absent",
        )
    return Result.load(path)
