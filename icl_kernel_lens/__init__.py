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
    from icl_kernel_lens.influence.fidelity import influence_fidelity
    from icl_kernel_lens.influence.measure import influence_cost, label_influence
    from icl_kernel_lens.interventions.carried import carried_influence
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
    from icl_kernel_lens.results.head_scores import HeadScores
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
    "HeadRef",
    "HeadScores",
    "PromptSet",
    "Task",
    "Template",
    "ablation_curves",
    "carried_influence",
    "corrupt",
    "direct_logit_attribution",
    "fast_attention",
    "head_vote",
    "in_context_accuracy",
    "influence_cost",
    "influence_fidelity",
    "joined",
    "knock_out",
    "label_coverage",
    "label_influence",
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

_PLACES = {
    "ablation_curves": "locate.ablation",
    "carried_influence": "interventions.carried",
    "corrupt": "prompts.corruptions",
    "Criteria": "results.criteria",
    "direct_logit_attribution": "readouts.logit_attribution",
    "Evidence": "results.evidence",
    "fast_attention": "models.fast",
    "head_vote": "scores.vote",
    "HeadRef": "axes",
    "HeadScores": "results.head_scores",
    "in_context_accuracy": "scores.in_context",
    "influence_cost": "influence.measure",
    "influence_fidelity": "influence.fidelity",
    "joined": "run.processes",
    "knock_out": "interventions.cuts",
    "label_coverage": "interventions.coverage",
    "label_influence": "influence.measure",
    "load": "saved",
    "load_model": "models.load",
    "load_task": "tasks.load",
    "locate_heads": "locate.search",
    "patch_labels": "interventions.patch",
    "planted_model": "worlds.planted.model",
    "PromptSet": "prompts.promptset",
    "read": "evidence.reading",
    "substitute_kernel": "interventions.substitute",
    "swap_values": "interventions.swap",
    "Task": "tasks.task",
    "Template": "prompts.template",
}
"""Of each name, the module it comes from."""
_PACKAGES = {
    "charts",
    "report",
    *(module.split(".")[0] for module in _PLACES.values() if "." in module),
    "theory",
}


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
