"""Which attention heads answer a few-shot prompt like a kernel regression? A TransformerLens plugin.

    model    = load_model("mini")
    task     = load_task("topics")
    prompts  = task.prompts(model, demos=16, count=400, seed=0)
    evidence = read(model, prompts)
    vote     = head_vote(evidence)

ŷ(x) = Σᵢ yᵢ K(x, xᵢ) / Σᵢ K(x, xᵢ), with a head's attention from the answer position to the
demonstrations as K (Han et al., TMLR 2025).

These names are the ones most work needs; everything else is in the module that `docs/architecture.md` names. A name is
imported when it is first used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icl_kernel_lens.axes import HeadRef
    from icl_kernel_lens.evidence.reading import read
    from icl_kernel_lens.interventions.coverage import label_coverage
    from icl_kernel_lens.interventions.cuts import knock_out
    from icl_kernel_lens.interventions.patch import patch_labels
    from icl_kernel_lens.interventions.substitute import substitute_kernel
    from icl_kernel_lens.interventions.swap import swap_values
    from icl_kernel_lens.locate.ablation import ablation_curves
    from icl_kernel_lens.locate.search import locate_heads
    from icl_kernel_lens.models.fast import fast_attention
    from icl_kernel_lens.models.load import load_model
    from icl_kernel_lens.prompts.corruptions import corrupt
    from icl_kernel_lens.prompts.promptset import PromptSet
    from icl_kernel_lens.prompts.template import Template
    from icl_kernel_lens.readouts.logit_attribution import direct_logit_attribution
    from icl_kernel_lens.results.criteria import Criteria
    from icl_kernel_lens.results.evidence import Evidence
    from icl_kernel_lens.results.head_ranking import HeadRanking
    from icl_kernel_lens.results.head_scores import HeadScores
    from icl_kernel_lens.results.patch_effects import PatchEffects
    from icl_kernel_lens.run.processes import joined
    from icl_kernel_lens.saved import load
    from icl_kernel_lens.scores.in_context import in_context_accuracy
    from icl_kernel_lens.scores.vote import head_vote
    from icl_kernel_lens.tasks.load import load_task
    from icl_kernel_lens.tasks.task import Task
    from icl_kernel_lens.worlds.planted.model import planted_model

__all__ = [
    "Criteria",
    "Evidence",
    "HeadRanking",
    "HeadRef",
    "HeadScores",
    "PatchEffects",
    "PromptSet",
    "Task",
    "Template",
    "ablation_curves",
    "corrupt",
    "direct_logit_attribution",
    "fast_attention",
    "head_vote",
    "in_context_accuracy",
    "joined",
    "knock_out",
    "label_coverage",
    "load",
    "load_model",
    "load_task",
    "locate_heads",
    "patch_labels",
    "planted_model",
    "read",
    "substitute_kernel",
    "swap_values",
]

_MODULES = {
    "axes": "HeadRef",
    "evidence.reading": "read",
    "interventions.coverage": "label_coverage",
    "interventions.cuts": "knock_out",
    "interventions.patch": "patch_labels",
    "interventions.substitute": "substitute_kernel",
    "interventions.swap": "swap_values",
    "locate.ablation": "ablation_curves",
    "locate.search": "locate_heads",
    "models.fast": "fast_attention",
    "models.load": "load_model",
    "prompts.corruptions": "corrupt",
    "prompts.promptset": "PromptSet",
    "prompts.template": "Template",
    "readouts.logit_attribution": "direct_logit_attribution",
    "results.criteria": "Criteria",
    "results.evidence": "Evidence",
    "results.head_ranking": "HeadRanking",
    "results.head_scores": "HeadScores",
    "results.patch_effects": "PatchEffects",
    "run.processes": "joined",
    "saved": "load",
    "scores.in_context": "in_context_accuracy",
    "scores.vote": "head_vote",
    "tasks.load": "load_task",
    "tasks.task": "Task",
    "worlds.planted.model": "planted_model",
}
_PACKAGES = {"charts", "report", *(module.split(".")[0] for module in _MODULES if "." in module), "theory"}
_PLACES = {name: module for module, name in _MODULES.items()}


def __getattr__(name: str) -> Any:
    """A public name, or a package of this one, on first use (PEP 562)."""
    if name == "__version__":
        return version("icl-kernel-lens")
    if name in _PLACES:
        value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
        globals()[name] = value
        return value
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    dunder = (name for name in globals() if name.startswith("__"))
    return sorted({*dunder, *__all__, *_PACKAGES, "__version__"})
