"""Adapters: merged into a copy, compared with PEFT's own unmerged model; the user's object as it was."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from models.test_copies import all_of, same
from models.weights_made import adapter_of, llama, logits, needs_peft

from icl_kernel_lens import load_model
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.models import peft_adapters
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import load_record
from icl_kernel_lens.models.sources import source_of

pytestmark = needs_peft

METHODS = {
    "lora": {},
    "dora": {"use_dora": True},
    "with embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "with a module of its own": {"modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ["v_proj"], "trainable_token_indices": {"embed_tokens": [3, 4, 5]}},
}


@pytest.fixture
def folders(tmp_path):
    """A base model's folder, and its adapter's beside it."""
    llama().save_pretrained(tmp_path / "base")
    saved = adapter_of(llama())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the base model's name, which is written next
        saved.save_pretrained(tmp_path / "mine")
    name_base(tmp_path / "mine", str(tmp_path / "base"))
    return tmp_path / "base", tmp_path / "mine"


def name_base(folder, base):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))


@pytest.mark.parametrize("backend", ["auto", "bridge"])
@pytest.mark.parametrize("method", METHODS)
def test_a_peft_model_is_merged_and_stays_as_it_is(method, backend):
    given = adapter_of(llama(), **METHODS[method])
    given.train()
    before = all_of(given)
    model = load_model(given, backend=backend)
    assert same(before, all_of(given))
    given.eval()
    torch.testing.assert_close(logits(model), logits(given), atol=1e-4, rtol=0)
    assert float((logits(model) - logits(llama())).abs().max()) > 1e-2, "the adapter does nothing"
    record = load_record(model)
    assert record is not None
    assert record.source.startswith("a PeftModel")
    assert record.logit_residual is not None


def test_only_what_is_merged_into_is_copied():
    given = adapter_of(llama(), target_modules=["q_proj"])
    plain, _ = peft_adapters.merged(peft_adapters.copy_of(given), keep=True)
    base = given.get_base_model()
    assert plain.model.layers[0].mlp.up_proj.weight is base.model.layers[0].mlp.up_proj.weight
    assert (
        plain.model.layers[0].self_attn.q_proj.weight
        is not base.model.layers[0].self_attn.q_proj.base_layer.weight
    )


@pytest.mark.parametrize("relative", [False, True])
def test_a_folder_of_an_adapter(folders, relative):
    base, mine = folders
    if relative:
        name_base(mine, "../base")
    model = load_model(mine, device="cpu")
    torch.testing.assert_close(logits(model), logits(adapter_of(llama())), atol=1e-4, rtol=0)
    record = load_record(model)
    assert record is not None
    assert record.source.startswith(f"{mine}, an adapter of ")
    assert as_adapter(model).name.endswith("/base + " + f"{mine.parent.name}/mine")
    assert as_adapter(model).name != as_adapter(load_model(base, device="cpu")).name


def test_the_reference_is_the_unmerged_model(folders, monkeypatch):
    """A merge that goes wrong is refused, and not compared with itself."""
    import peft

    merge = peft.tuners.lora.Linear.get_delta_weight
    monkeypatch.setattr(peft.tuners.lora.Linear, "get_delta_weight", lambda *args: 1.5 * merge(*args))
    for given in (folders[1], adapter_of(llama())):
        with pytest.raises(LoadError, match="a model must give Hugging Face's logits"):
            load_model(given, device="cpu")


def test_an_adapter_that_transformers_put_into_the_model(folders):
    hf = llama()
    hf.load_adapter(str(folders[1]))
    before = all_of(hf)
    model = load_model(hf)
    assert same(before, all_of(hf))
    torch.testing.assert_close(logits(model), logits(adapter_of(llama())), atol=1e-4, rtol=0)


def test_an_adapter_beside_the_weights(folders):
    """A folder that has both: the adapter is part of the model, and is merged like another."""
    base, mine = folders
    for file in mine.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    found = source_of(base, "cpu")
    assert found.theirs is not None
    assert not peft_adapters.tuned_modules(found.hf)
    model = load_model(base, device="cpu")
    torch.testing.assert_close(logits(model), logits(adapter_of(llama())), atol=1e-4, rtol=0)


def test_half_precision():
    given = adapter_of(llama(dtype=torch.bfloat16))
    model = load_model(given)
    assert as_adapter(model).dtype == torch.bfloat16
    record = load_record(model)
    assert record is not None
    assert record.logit_residual is not None


def test_what_is_no_adapter_for_weights_is_refused():
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = peft.get_peft_model(
            llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        )
    with pytest.raises(LoadError, match=r"must be merged .* add tokens, not weights.*model-adapter"):
        load_model(given)


def test_what_is_missing_is_told(folders, monkeypatch):
    base, mine = folders
    name_base(mine, None)
    with pytest.raises(LoadError, match="must name the adapter's base model, and names none"):
        load_model(mine)
    name_base(mine, "no-such/base")
    with pytest.raises(LoadError, match=r"the base model that .* names must be had: .*neither \"mini\""):
        load_model(mine)
    name_base(mine, str(base))
    whole = (mine / "adapter_model.safetensors").read_bytes()
    (mine / "adapter_model.safetensors").write_bytes(whole[:300])
    with pytest.raises(LoadError, match="does not go with its base model"):
        load_model(mine, device="cpu")
    from safetensors.torch import load, save_file

    kept = {key: weight for key, weight in load(whole).items() if "layers.1" not in key}
    save_file(kept, mine / "adapter_model.safetensors")
    with pytest.raises(LoadError, match="every weight of an adapter must be in its file"):
        load_model(mine, device="cpu")
    (mine / "adapter_config.json").write_text("{")
    with pytest.raises(LoadError, match="must name the base model; it cannot be read"):
        load_model(mine)
    monkeypatch.setattr(peft_adapters, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r'pip install "icl-kernel-lens\[peft\]".*package-missing'):
        load_model(mine)
