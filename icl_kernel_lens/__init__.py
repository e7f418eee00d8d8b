"""Which attention heads answer a few-shot prompt like a kernel regression? A TransformerLens plugin.

    model    = load_model("mini")
    task     = load_task("topics")
    prompts  = task.prompts(model, demos=16, count=400, seed=0)
    evidence = read(model, prompts)
    vote     = head_vote(evidence)

ŷ(x) = Σᵢ yᵢ K(x, xᵢ) / Σᵢ K(x, xᵢ), with a head's attention from the answer position to the
demonstrations as K (Han et al., TMLR 2025).
"""

from importlib.metadata import version as _version

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.evidence import Evidence, read
from icl_kernel_lens.evidence.processes import joined
from icl_kernel_lens.interventions import (
    direct_effect,
    knock_out,
    patch_labels,
    prediction,
    routes,
    substitute_kernel,
    swap_values,
)
from icl_kernel_lens.locate import locate_heads, necessity_and_sufficiency, stability
from icl_kernel_lens.models import fast_attention, load_model
from icl_kernel_lens.plots.token_view import token_view
from icl_kernel_lens.prompts import PromptSet
from icl_kernel_lens.prompts.corrupt import corrupt
from icl_kernel_lens.prompts.reorder import reorder_demos
from icl_kernel_lens.readouts import DirectLogits, Saliency, direct_logits, prediction_similarity, saliency
from icl_kernel_lens.results.circuit_curves import CircuitCurves
from icl_kernel_lens.results.head_ranking import Criteria, HeadRanking
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.results.patch_effects import PatchEffects
from icl_kernel_lens.results.stability import Stability, compare
from icl_kernel_lens.scores import (
    TaskAccuracy,
    effective_demos,
    head_vote,
    in_context_accuracy,
    label_mass,
    soft_agreement,
)
from icl_kernel_lens.tasks import Task, Template, load_task
from icl_kernel_lens.worlds.planted import planted_model

__version__ = _version("icl-kernel-lens")

__all__ = [
    "CircuitCurves",
    "Criteria",
    "DirectLogits",
    "Evidence",
    "HeadRanking",
    "HeadRef",
    "HeadScores",
    "PatchEffects",
    "PromptSet",
    "Saliency",
    "Stability",
    "Task",
    "TaskAccuracy",
    "Template",
    "compare",
    "corrupt",
    "direct_effect",
    "direct_logits",
    "effective_demos",
    "fast_attention",
    "head_vote",
    "in_context_accuracy",
    "joined",
    "knock_out",
    "label_mass",
    "load_model",
    "load_task",
    "locate_heads",
    "necessity_and_sufficiency",
    "patch_labels",
    "planted_model",
    "prediction",
    "prediction_similarity",
    "read",
    "reorder_demos",
    "routes",
    "saliency",
    "soft_agreement",
    "stability",
    "substitute_kernel",
    "swap_values",
    "token_view",
]
