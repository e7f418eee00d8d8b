"""Every kind of change is measured on the model in hand; a wrong one is refused, a head that goes nowhere is not."""

from __future__ import annotations

import pytest
import torch
from architectures import hf_model
from support import KINDS, uneven_prompts

from icl_kernel_lens import knock_out
from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.interventions import verify
from icl_kernel_lens.interventions.verify import check_primitive, verify_interventions
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import bridge_from_hf
from icl_kernel_lens.run import variants


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_every_change_is_exact_on_every_architecture(tiny, name, kind):
    table = verify_interventions(tiny(name, kind)[0])
    assert len(table) == 9
    assert list(table.columns) == ["change", "route", "residual"]
    assert table["residual"].max() < 1e-5
    assert (table["route"][:2] == "answer position alone").all()


@pytest.mark.parametrize(
    "change",
    ["attention_edge", "attention_rows", "head_output", "query", "key", "value", "residual", "mlp_output"],
)
def test_a_change_that_does_not_arrive_is_refused(change, monkeypatch):
    """Without the edit, and with the edit of another layer: neither passes."""
    adapter = as_adapter(bridge_from_hf(hf_model("gptj")))
    with monkeypatch.context() as patch:
        run = variants.run_variants

        def blind(adapter, tokens, at, count, changes, prefix, **options):
            for edits in (changes.vectors, changes.streams):
                for edit in edits.values():
                    for layer in range(3):  # what is put is known, and goes nowhere
                        edit(
                            layer,
                            torch.zeros(3, 4, 9, 8) if edits is changes.vectors else torch.zeros(3, 9, 32),
                        )
            return run(adapter, tokens, at, count, variants.Changes(edits=changes.edits), prefix, **options)

        patch.setattr(verify, "run_variants", blind)
        with pytest.raises(ModelError, match=f"must do in the layer what it says; {change}"):
            check_primitive(adapter, change)
    assert check_primitive(adapter, change).residual < 1e-5


def test_a_disconnected_head_is_measured_too(monkeypatch):
    """Its output goes nowhere; that its own z changes as it should is still seen, and its effects are 0."""
    hf = hf_model("llama")
    with torch.no_grad():
        hf.model.layers[1].self_attn.o_proj.weight[:, 8:16] = 0
    model = bridge_from_hf(hf)
    assert verify_interventions(model)["residual"].max() < 1e-5
    effects = knock_out(model, uneven_prompts(count=2), progress=False)
    assert effects.effect()[:, 1, 1].abs().max() < 1e-5
    assert effects.effect()[:, 1, 0].abs().max() > 1e-3
    assert "answer position alone" in effects.settings["route"]
