"""Every kind of change is measured on the model in hand; a wrong one is refused, a head that goes nowhere is not."""

from __future__ import annotations

import pytest
import torch
from architectures import VOCAB, hf_model
from support import KINDS, uneven_prompts

from icl_kernel_lens import corrupt, knock_out, patch_labels
from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.interventions import verify
from icl_kernel_lens.interventions.verify import check_primitive, ends_wider, joins_late, verify_interventions
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import bridge_from_hf
from icl_kernel_lens.models.verify import verify_model
from icl_kernel_lens.run import variants
from icl_kernel_lens.run.variants import Changes, RowChange, editable, keep, own_tokens, run_variants


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_every_change_is_exact_on_every_architecture(tiny, name, kind):
    table = verify_interventions(tiny(name, kind)[0])
    assert len(table) == 9
    assert list(table.columns) == ["change", "route", "residual", "verdict"]
    assert set(table["verdict"]) == {"exact"}
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


@pytest.fixture(scope="module")
def olmo2():
    """Its norm of queries and of keys is one over all heads: what hook_q shows is not yet a head's query."""
    import transformers

    config = transformers.Olmo2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=96, initializer_range=0.15, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return bridge_from_hf(
            transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        )


def test_only_the_change_that_is_not_exact_is_refused(olmo2):
    """The table has a verdict each, and nothing that is exact waits for the others."""
    table = verify_interventions(olmo2).set_index("change")
    refused = set(table.index[table["verdict"] != "exact"])
    assert refused == {"query", "key"}
    assert (table.loc[sorted(refused), "residual"] > 1e-3).all()
    assert table["verdict"]["query"].startswith("a change must do in the layer what it says; query of")
    prompts = uneven_prompts(count=2)
    assert knock_out(olmo2, prompts, progress=False).effect().abs().max() > 1e-3
    corrupted = corrupt(prompts, "permute_labels", seed=0)
    options = {"clean": prompts, "corrupted": corrupted, "offsets": (0,), "progress": False}
    assert patch_labels(olmo2, activation="value", **options).values.isfinite().all()
    with pytest.raises(ModelError, match=r"query of unnamed is off by .*lists the changes that are exact"):
        patch_labels(olmo2, activation="query", **options)


def test_a_change_that_cannot_be_measured_is_refused_alone(olmo2, monkeypatch):
    """Whatever fails on the way is a verdict, not an exception out of the table."""
    monkeypatch.setattr(verify._Bench, "streams", lambda *_: 1 / 0)
    verdicts = verify_interventions(bridge_from_hf(hf_model("llama"))).set_index("change")["verdict"]
    assert verdicts["residual"].endswith("cannot be measured: ZeroDivisionError: division by zero")
    assert set(verdicts.drop(["residual", "attention_output", "mlp_output"])) == {"exact"}


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("change", ["attention_rows", "head_output", "value", "mlp_output"])
def test_undefined_numbers_in_any_layer_are_refused(change, layer, monkeypatch):
    """In whichever layer they are: a maximum that drops NaN would let them pass."""
    adapter, seen = as_adapter(bridge_from_hf(hf_model("llama"))), iter(range(99))
    verify_model(adapter)
    gap = verify.gap
    monkeypatch.setattr(verify, "gap", lambda *x: float("nan") if next(seen) % 3 == layer else gap(*x))
    with pytest.raises(ModelError, match=f"{change} of unnamed is off by nan"):
        check_primitive(adapter, change)


@pytest.mark.parametrize("measured_before", [True, False])
def test_a_users_hook_does_not_decide_what_is_exact(measured_before):
    """It edits z of every run, also of the one that is measured; the change is verified without it, and made with it."""
    model = bridge_from_hf(hf_model("llama"))
    adapter = as_adapter(model)
    if measured_before:
        verify_interventions(model)

    def last_only(z, hook):
        z[:, 10] = 0  # on fewer tokens than that it fails
        return z

    model.blocks[1].attn.hook_z.add_hook(last_only)
    effects = knock_out(model, uneven_prompts(count=2), progress=False)
    assert effects.settings["route"].startswith("whole prompt; within")
    assert f"verified without the hooks on {adapter.hooks_in_place()[0]}, which" in effects.run.verification
    model.blocks[1].attn.hook_z.remove_hooks()
    plain = knock_out(model, uneven_prompts(count=2), progress=False)
    assert plain.settings["route"].startswith("answer position alone; within")
    assert (plain.effect() - effects.effect()).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "gemma2", "gpt_neox", "bloom", "opt", "falcon"])
def test_variants_that_join_on_the_way_are_those_run_whole(tiny, name):
    """Sets of heads over several layers, one variant unchanged, in no order of layers."""
    model, _ = tiny(name, "bridge")
    adapter = editable(model)
    assert joins_late(adapter)
    assert ends_wider(adapter)
    prompts = uneven_prompts()
    tokens, at = prompts.tokens[1], int(prompts.answer_pos[1])
    heads = torch.zeros(5, adapter.shape.layers, adapter.shape.heads, dtype=torch.bool)
    heads[0, 2, 1] = heads[1, 0, 3] = heads[3, 1, 0] = heads[3, 2, 2] = heads[4, 0, 0] = heads[4, 2, 0] = True

    def change(row):
        assert len(row.queries) == len(row.weights)
        return row.weights.roll(1, 1) * (1 + row.variants[:, None])

    changes = Changes(rows=RowChange(heads, torch.full((5, 1), at), change))
    kept = keep(adapter, tokens, at, None, own_tokens(adapter, at + 1))
    whole, late = (run_variants(adapter, tokens, at, 5, changes, kept, late=late) for late in (False, True))
    torch.testing.assert_close(late, whole, atol=2e-5, rtol=1e-5)
    assert (whole[[0, 1, 3, 4]] - whole[2]).abs().amax(1).min() > 1e-4, "every change but the empty one shows"


def test_where_the_batch_cannot_grow_variants_are_run_whole(tiny, monkeypatch):
    model, _ = tiny("llama", "bridge")
    late = knock_out(model, uneven_prompts(), progress=False)

    def fails(*_args, **_kwargs):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(variants, "_joining", fails)
    monkeypatch.setattr(verify, "_late", type(verify._late)())
    assert not joins_late(editable(model))
    assert ends_wider(editable(model)), "which is asked apart"
    with monkeypatch.context() as patch:
        patch.setattr(verify, "_ends", type(verify._ends)())
        patch.setattr(verify, "run_variants", fails)
        assert not ends_wider(editable(model))
    whole = knock_out(model, uneven_prompts(), progress=False)
    torch.testing.assert_close(late.values, whole.values, atol=1e-5, rtol=0)
