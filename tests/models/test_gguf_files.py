"""A .gguf file: its numbers are those that the file's blocks stand for, and what they were stored in is said."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import transformers
from models.weights_made import llama, logits, needs_gguf, write_gguf
from transformers import modeling_gguf_pytorch_utils as reader
from transformers.quantizers import quantizer_gguf
from transformers.utils import logging

from icl_kernel_lens import load_model
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.models import gguf_files
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.gguf_files import GgufFile
from icl_kernel_lens.models.load import load_record

pytestmark = needs_gguf


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_a_quantised_file_gives_the_numbers_of_its_blocks(tmp_path, kind):
    expected = write_gguf(tmp_path / "tiny.gguf", llama(), kind)
    model = load_model(tmp_path / "tiny.gguf", device="cpu")
    torch.testing.assert_close(logits(model), logits(expected), atol=1e-4, rtol=0)
    assert float((logits(model) - logits(llama())).abs().max()) > 1e-3, "quantised as not quantised"
    record = load_record(model)
    assert record is not None
    assert record.quantisation is not None
    assert record.quantisation.startswith(f"{kind} and F32: ")
    assert record.quantisation.endswith(f" % of weights in {kind}")
    assert record.logit_residual is not None
    assert as_adapter(model).name == f"Tiny Llama ({kind})"


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)]
)
def test_floats_stay_what_they_are(tmp_path, kind, dtype):
    write_gguf(tmp_path / "tiny.gguf", llama(), kind, name=None)
    file = GgufFile.of(tmp_path / "tiny.gguf")
    assert (file.quantisation, file.dtype, file.name) == (None, dtype, f"tiny ({kind})")
    adapter = as_adapter(load_model(tmp_path / "tiny.gguf", device="cpu"))
    assert adapter.dtype == dtype
    asked = as_adapter(load_model(tmp_path / "tiny.gguf", device="cpu", dtype=torch.float32))
    assert asked.dtype == torch.float32


def test_the_model_has_a_plain_configuration(tmp_path):
    """One that still says "quantised" is refused by what builds on it."""
    write_gguf(tmp_path / "tiny.gguf", llama())
    hf = gguf_files.read_gguf(GgufFile.of(tmp_path / "tiny.gguf"), None, spread=False)
    assert not hasattr(hf.config, "quantization_config")
    assert not hasattr(hf, "hf_quantizer")
    assert "quantization_config" not in hf.config.to_dict()
    assert gguf_files.read_gguf_tokenizer(GgufFile.of(tmp_path / "tiny.gguf")) is None


def test_no_bar_is_shown_and_the_settings_stay(tmp_path, monkeypatch, capsys):
    """transformers has two readers; its switch of progress bars does not reach that of the older one."""
    monkeypatch.setattr(quantizer_gguf, "is_gguf_arch_supported", lambda name: False)
    write_gguf(tmp_path / "tiny.gguf", llama())
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    assert "de-quantizing GGUF tensors" in capsys.readouterr().err, "there is none to hide"
    bar = reader.tqdm
    load_model(tmp_path / "tiny.gguf", device="cpu")
    assert capsys.readouterr().err == ""
    assert reader.tqdm is bar
    assert logging.is_progress_bar_enabled()


def test_what_cannot_be_read_is_told(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf", llama())
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for cut in (40, 2000, len(whole) - 3000):
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        with pytest.raises(LoadError, match=r"cut.gguf cannot be read: .* whole\?"):
            load_model(tmp_path / "cut.gguf", device="cpu")
    write_gguf(tmp_path / "part.gguf", llama(), split_count=3)
    with pytest.raises(LoadError, match=r"is one of 3. Join them"):
        load_model(tmp_path / "part.gguf", device="cpu")
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r'pip install "icl-kernel-lens\[gguf\]".*package-missing'):
        load_model(tmp_path / "tiny.gguf", device="cpu")


def test_the_words_for_a_quantisation(tmp_path):
    counts = Counter({"F32": 10, "Q4_1": 80, "Q8_0": 10})
    assert (
        GgufFile(tmp_path, "a", counts, False).quantisation == "Q4_1, F32 and Q8_0: 80 % of weights in Q4_1"
    )
    assert (
        GgufFile(tmp_path, "a", Counter({"Q4_0": 3}), False).quantisation == "Q4_0: 100 % of weights in Q4_0"
    )
