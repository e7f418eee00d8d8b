"""What a reading might leave behind in a model."""

from __future__ import annotations

import torch
from architectures import hf_model
from support import has_hooked_transformer

from icl_kernel_lens.models.load import bridge_from_hf, hooked_from_hf

KINDS = ["bridge"] + (["hooked"] if has_hooked_transformer() else [])


def build(kind: str):
    model = {"bridge": bridge_from_hf, "hooked": hooked_from_hf}[kind](hf_model("llama"))
    with torch.no_grad():
        model(torch.ones(1, 4, dtype=torch.long))  # TransformerLens wires hooks of its own at the first run
    return model


def state(model):
    return {
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "lens_hooks": [len(getattr(m, "fwd_hooks", [])) for m in model.modules()],
        "modes": [m.training for m in model.modules()],
        "grad": [p.requires_grad for p in model.parameters()],
        "weights": [p.detach().clone() for p in model.parameters()],
        "rng": torch.random.get_rng_state(),
        "grad_mode": torch.is_grad_enabled(),
        "shadowed": [[name for name in m.__dict__ if hasattr(type(m), name)] for m in model.modules()],
        "attention": getattr(
            getattr(getattr(model, "original_model", None), "config", None), "_attn_implementation", None
        ),
    }


def same(a, b) -> bool:
    weights = all(torch.equal(x, y) for x, y in zip(a["weights"], b["weights"], strict=True))
    rng = torch.equal(a["rng"], b["rng"])
    rest = [k for k in a if k not in ("weights", "rng")]
    return weights and rng and all(a[k] == b[k] for k in rest)
