"""Loading: the bundled model, local folders, refusals; and which class was taken, and why."""

from __future__ import annotations

import pytest
import torch
import transformers
from architectures import hf_model
from models.left_as_found import KINDS, build, same, state
from models.test_comparison import spoilt, users_bridge
from models.weights_made import in_int8, llama
from support import SHARED, has_hooked_transformer, needs_hooked, needs_shared, unchecked, uneven_prompts

from icl_kernel_lens import Evidence, head_vote, load_model, read
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import load_record, unwritten
from icl_kernel_lens.models.sources import MINI
from icl_kernel_lens.models.transformer_lens_adapters import transformer_lens_classes
from icl_kernel_lens.models.verify import verify_model
from icl_kernel_lens.report.heads import write_report


def saved(tmp_path, name, **options):
    folder = tmp_path / f"a-{name}-folder"
    hf_model(name).save_pretrained(folder, **options)
    return folder


def test_the_bundled_model_is_transformer_lens_own_object(mini):
    hooked, bridge = transformer_lens_classes()
    assert type(mini) is (hooked or bridge)
    record = load_record(mini)
    assert record is not None
    assert record.source == "mini"
    assert record.backend == ("hooked" if hooked else "bridge")


@needs_hooked
def test_both_classes_give_the_same_logits(mini):
    other = load_model("mini", backend="bridge", device="cpu")
    tokens = torch.randint(3, 300, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = mini(tokens, return_type="logits"), other(tokens, return_type="logits")
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi", "gpt2", "bloom"])
def test_auto_on_a_local_folder(tmp_path, name):
    """The folder's name plays no part: TransformerLens would read an architecture out of it."""
    folder = saved(tmp_path, name)
    model = load_model(folder, device="cpu")
    record = load_record(model)
    assert record is not None
    assert record.backend == ("hooked" if has_hooked_transformer() else "bridge"), record.why
    tokens = torch.randint(3, 80, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = hf_model(name)(tokens).logits
        found = model(tokens, return_type="logits", attention_mask=torch.ones_like(tokens))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def gemma3(rotary: str = "default", **more):
    """Tiny, with a rotary base of its own in windows, and every weight drawn at random: norms' too."""
    config = transformers.Gemma3TextConfig(
        vocab_size=89, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=12, sliding_window=16, max_position_embeddings=96,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": rotary, "rope_theta": 5000.0} | more,
        },
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for parameter in hf.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
    return hf


@needs_hooked
def test_gemma_3_as_a_hooked_transformer():
    """TransformerLens knows its configuration by the names of a few sizes."""
    for hf in (gemma3(), gemma3("linear", factor=8.0)):
        with torch.no_grad():
            expected = hf(tokens := torch.arange(3, 80)[None]).logits
        model = load_model(hf, backend="hooked", device="cpu")
        found = model(tokens, return_type="logits", attention_mask=torch.ones_like(tokens))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    with pytest.raises(LoadError, match=r"no HookedTransformer has rotary positions .*'dynamic'"):
        load_model(gemma3("dynamic", factor=8.0), backend="hooked", device="cpu")


@needs_hooked
def test_the_name_of_the_temporary_folder_plays_no_part(tmp_path, monkeypatch):
    import tempfile

    (tmp_path / "llama-gemma-tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "llama-gemma-tmp"))
    record = load_record(load_model("mini", device="cpu"))
    assert record is not None
    assert record.backend == "hooked", record.why


def test_loading_leaves_the_progress_bars_as_they_were(tmp_path):
    from transformers.utils import logging

    assert logging.is_progress_bar_enabled()
    load_model("mini", device="cpu")
    assert logging.is_progress_bar_enabled()


@needs_hooked
def test_auto_falls_back_to_the_bridge_and_says_why(tmp_path):
    folder = saved(tmp_path, "falcon")
    record = load_record(load_model(folder, device="cpu"))
    assert record is not None
    assert record.backend == "bridge"
    assert "cannot convert FalconForCausalLM" in record.why
    with pytest.raises(LoadError, match='backend="hooked" is not possible'):
        load_model(folder, device="cpu", backend="hooked")


@needs_hooked
def test_a_conversion_with_wrong_logits_is_not_kept(tmp_path, monkeypatch):
    """A converter that gets the weights wrong loses to the bridge, with the residual in the record."""
    from transformer_lens import loading_from_pretrained

    good = loading_from_pretrained.get_pretrained_state_dict

    def bad(*args, **kwargs):
        weights = good(*args, **kwargs)
        return weights | {"blocks.1.attn.W_O": weights["blocks.1.attn.W_O"] * 1.5}

    monkeypatch.setattr(loading_from_pretrained, "get_pretrained_state_dict", bad)
    record = load_record(load_model(saved(tmp_path, "gpt2"), device="cpu"))
    assert record is not None
    assert record.backend == "bridge"
    assert "a HookedTransformer was tried, but a model must give Hugging Face's logits" in record.why


@pytest.mark.skipif(has_hooked_transformer(), reason="this TransformerLens has HookedTransformer")
def test_hooked_is_refused_where_it_does_not_exist():
    with pytest.raises(LoadError, match="removed in 4.0"):
        load_model("mini", backend="hooked")


def test_refusals(tmp_path):
    with pytest.raises(LoadError, match="must hold config.json"):
        load_model(tmp_path)
    with pytest.raises(LoadError, match='neither "mini", nor a folder here, nor readable on the Hub'):
        load_model("no-such/model-anywhere")
    with pytest.raises(LoadError, match="a HookedTransformer or a TransformerBridge; got a torch.nn.*Linear"):
        load_model(torch.nn.Linear(2, 2))
    with pytest.raises(LoadError, match="cannot be moved to device 'nonsense'"):
        load_model("mini", device="nonsense")
    with pytest.raises(LoadError, match='backend must be "auto", "hooked" or "bridge"'):
        unchecked(load_model)("mini", backend="fast")


@pytest.mark.parametrize("kind", KINDS)
def test_transformer_lens_own_object_is_returned_as_it_is(kind):
    given = build(kind)
    before = state(given)
    assert load_model(given) is given
    assert same(before, state(given))
    record = load_record(given)
    assert record is not None
    assert (record.source, record.backend, record.why) == (
        f"a {type(given).__name__} that was given",
        kind,
        "it was given",
    )
    assert record.compared.startswith("logits equal Hugging Face's within")
    for options in ({"device": "meta"}, {"dtype": torch.float16}, {"tokenizer": "one"}):
        with pytest.raises(LoadError, match=f"is returned as it is, so that {next(iter(options))} cannot"):
            load_model(given, **options)
    assert load_model(given, device="cpu", dtype=torch.float32, backend=kind) is given


def test_what_load_model_knew_of_a_model_stays(mini):
    record = load_record(mini)
    assert load_model(mini) is mini
    assert load_record(mini) is record


def test_a_bridge_that_the_user_built_is_compared():
    """Right, it is returned; wrong, refused."""
    right = users_bridge(hf_model("llama"))
    assert load_model(right) is right
    record = load_record(right)
    assert record is not None
    assert record.logit_residual is not None
    with pytest.raises(LoadError, match="those of mine differ by"):
        load_model(spoilt(users_bridge(hf_model("llama"))))


@needs_hooked
def test_what_cannot_be_compared_is_said_of_it():
    sizes = {
        "n_layers": 1,
        "d_model": 8,
        "n_ctx": 9,
        "d_head": 4,
        "n_heads": 2,
        "d_vocab": 7,
        "attn_only": True,
    }
    given = unwritten(sizes)
    record = load_record(load_model(given))
    assert record is not None
    assert record.logit_residual is None
    assert record.compared == "not compared with Hugging Face's logits: there is none under it"


@pytest.mark.parametrize("given", ["bin", "object"])
def test_quantisation_stands_with_every_number(given, tmp_path):
    """What is known of it is in the record, in results, in their titles and in the report; of floats, nothing."""
    model = load_model(in_int8(llama()) if given == "object" else saved(tmp_path, "llama"), device="cpu")
    evidence = read(model, uneven_prompts(count=2), progress=False)
    packed = "int8 weights in 14 modules" if given == "object" else None
    assert evidence.run.quantisation == packed
    assert ("(int8)" in repr(evidence)) == ("(int8)" in evidence.run.about) == (given == "object")
    evidence.save(tmp_path / "e.safetensors")
    assert Evidence.load(tmp_path / "e.safetensors").run.quantisation == packed
    write_report(tmp_path / "report.html", evidence, [head_vote(evidence)], None)
    assert (packed or "none known") in (tmp_path / "report.html").read_text()


@needs_hooked
def test_a_window_that_transformer_lens_forgets_is_seen(tmp_path):
    """Qwen2's sliding window is longer than 32 tokens and lost in conversion: the bridge must be taken."""
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=89, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, use_sliding_window=True, sliding_window=40,
        max_window_layers=0, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "q")
    record = load_record(load_model(tmp_path / "q", device="cpu"))
    assert record is not None
    assert record.backend == "bridge", record


def test_absent_weights_are_not_replaced_by_random_ones(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path, "gpt2")
    weights = load_file(folder / "model.safetensors")
    kept = {name: w for name, w in weights.items() if ".h.1.attn" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match=r"every weight must be in the files; .* lacks \d+, among them"):
        load_model(folder, device="cpu")
    with pytest.raises(LoadError, match="is another file. Give its folder"):
        load_model(folder / "config.json")


@pytest.mark.parametrize("backend", ["bridge", pytest.param("hooked", marks=needs_hooked)])
def test_the_model_is_whole_and_random_state_is_left_alone(backend):
    """TransformerLens's own `to_tokens` works on what was loaded."""
    before = torch.random.get_rng_state()
    model = load_model("mini", device="cpu", backend=backend)
    assert torch.equal(before, torch.random.get_rng_state())
    tokens = model.to_tokens("sail harbor is")
    assert tokens.tolist() == [model.tokenizer("sail harbor is")["input_ids"]]


def test_damaged_files_are_named(tmp_path):
    import shutil

    for name, message in (
        ("tokenizer.json", "the tokenizer in"),
        ("model.safetensors", "could not load the model"),
    ):
        folder = tmp_path / name.split(".")[0]
        shutil.copytree(MINI, folder)
        (folder / name).write_bytes((MINI / name).read_bytes()[:1000])
        with pytest.raises(LoadError, match=message):
            load_model(folder, device="cpu")


@needs_shared
def test_real_weights():
    model = load_model(SHARED / "models" / "stories260k", device="cpu")
    adapter = as_adapter(model)
    assert (adapter.shape.heads, adapter.shape.kv_heads, adapter.shape.context) == (8, 4, 512)
    assert verify_model(adapter).worst < 1e-5


def test_packed_weights_are_named():
    import torch
    from architectures import hf_model

    from icl_kernel_lens.errors import LoadError
    from icl_kernel_lens.models.load import bridge_from_hf

    packed = hf_model("gpt2")
    packed.lm_head.weight = None
    del packed.lm_head._parameters["weight"]
    packed.lm_head.weight = lambda: torch.zeros(1)
    with pytest.raises(
        LoadError, match="weights must be tensors to be read; of this GPT2LMHeadModel, 1 parts"
    ):
        bridge_from_hf(packed)


@needs_hooked
def test_where_memory_does_not_hold_two_copies_it_is_a_bridge(monkeypatch, tmp_path):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    hf_model("llama").save_pretrained(tmp_path)
    monkeypatch.setattr("icl_kernel_lens.models.load.hooked_from_hf", full)
    record = load_record(load_model(tmp_path))
    assert record is not None
    assert record.backend == "bridge"
    assert "a second time" in record.why
