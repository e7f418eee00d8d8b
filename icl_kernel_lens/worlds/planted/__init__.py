"""Transformers whose weights are written by hand, so that which heads are kernel regressions is known.

A prompt is `BOS x₁ y₁ x₂ y₂ … xₙ yₙ x`: inputs x with unit feature vectors φ(x) about the centre of their class,
and one label token a class. The residual stream is a set of named subspaces. A carrier in layer 0 copies each
token's predecessor's feature, so that a label token knows its input; a planted kernel head then has, from the
answer position to label position i,

    a_i ∝ exp(φ(x)·φ(x_i) / h²) = exp(−|φ(x) − φ(x_i)|² / 2h²) · constant,    output = gain · Σ_i a_i e(y_i)

a Gaussian kernel of bandwidth h over the labels, exactly, but for the attention that stands on BOS (a sink of a
stated share). Beside such heads stand decoys: each role's attention and output are written in `ROLES`, and what it
reads and writes in `wires.py`. A separator may follow each label, and a token the test input (`separator`, `trailing`).

Every attention weight, logit and knock-out effect, the influence of each label and what of it goes through each head
have a closed form here (`PlantedPlan.weights`, `.logits`, `.effects`, `.influence`, `.label_part`, `.carried`),
computed from the world and not from the model. `expected` is the class that each head has by that closed form: what it is by what its
weights go with and what it writes.

Norms are divided out in the weights (`write.py` says how); what remains is float32 rounding. With `loudness` a norm
does something, which the closed form counts; `mlp_noise` gives layers random MLPs, which change nothing that is read.
Does not show: what trained models do, where heads are neither exact nor alone in their subspace.
"""

from icl_kernel_lens.worlds.planted.closed_form import PlantedPlan
from icl_kernel_lens.worlds.planted.model import PlantedModel, planted_model
from icl_kernel_lens.worlds.planted.roles import ROLES, HeadRole, PlantedClass, PlantedHead

__all__ = [
    "ROLES",
    "HeadRole",
    "PlantedClass",
    "PlantedHead",
    "PlantedModel",
    "PlantedPlan",
    "planted_model",
]
