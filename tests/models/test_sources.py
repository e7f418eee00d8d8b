"""What is given becomes a Hugging Face model of our own, with a name that tells it from others."""

from __future__ import annotations

import pytest
import torch
import transformers
from models.weights_made import llama, logits, needs_gguf, write_gguf

from icl_kernel_lens import load_model
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import load_record
from icl_kernel_lens.models.sources import MINI, source_of


def test_folders_of_one_name_are_told_apart(tmp_path, monkeypatch):
    for seed, run in enumerate(("run-a", "run-b")):
        llama(seed).save_pretrained(tmp_path / run / "checkpoint-500")
    names = [source_of(tmp_path / run / "checkpoint-500", "cpu").name for run in ("run-a", "run-b")]
    assert names == ["run-a/checkpoint-500", "run-b/checkpoint-500"]
    monkeypatch.chdir(tmp_path / "run-a" / "checkpoint-500")
    assert source_of(".", "cpu").name == "run-a/checkpoint-500"
    assert source_of("mini", "cpu").name == "mini"
    assert source_of(str(MINI), "cpu").tokenizer is not None


@needs_gguf
def test_files_of_one_name_are_told_apart(tmp_path):
    names = []
    for kind in ("Q8_0", "Q4_0"):
        (tmp_path / kind).mkdir()
        write_gguf(tmp_path / kind / "model.gguf", llama(), kind, name=None)
        names.append(source_of(tmp_path / kind / "model.gguf", "cpu").name)
    assert names == ["model (Q8_0)", "model (Q4_0)"]


def test_a_tokenizer_goes_with_everything(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINI)
    llama().save_pretrained(tmp_path)
    assert source_of(tmp_path, "cpu").tokenizer is None
    found = source_of(tmp_path, "cpu", tokenizer=tokenizer).tokenizer
    assert found is not None
    assert found is not tokenizer
    assert found("sail")["input_ids"] == tokenizer("sail")["input_ids"]
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(LoadError, match="the tokenizer in"):
        load_model(tmp_path, device="cpu")
    assert load_model(tmp_path, device="cpu", tokenizer=tokenizer).tokenizer is not None


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(LoadError, match=r"there is no file or folder './absent' \(looked for in "):
        load_model("./absent")
    with pytest.raises(LoadError, match="there is no file or folder 'absent.gguf'"):
        load_model("absent.gguf")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(LoadError, match="weights.bin is another file"):
        load_model(tmp_path / "weights.bin")


def test_what_is_given_is_recorded(tmp_path):
    hf = llama(dtype=torch.float16)
    hf.save_pretrained(tmp_path / "m")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    model = load_model(hf)
    record = load_record(model)
    assert record is not None
    assert record.source == "a LlamaForCausalLM that was given"
    assert as_adapter(model).name.startswith(f"{tmp_path / 'm'}, ")
    assert as_adapter(model).dtype == torch.float16
    torch.testing.assert_close(logits(model), logits(hf), atol=5e-2, rtol=0)
