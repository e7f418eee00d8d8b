"""Folders: safetensors before .bin, .bin as tensors and nothing else, every type of float as it is stored."""

from __future__ import annotations

import os
import pickle
import threading
import warnings
from contextlib import suppress

import pytest
import torch
from models.weights_made import llama, logits

from icl_kernel_lens import load_model
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import load_record


def bin_folder(folder, hf, shards: int = 1):
    """As transformers wrote models before safetensors."""
    import json

    hf.config.save_pretrained(folder)
    weights = list(hf.state_dict().items())
    if shards == 1:
        torch.save(dict(weights), folder / "pytorch_model.bin")
        return folder
    names = [f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin" for i in range(shards)]
    for i, name in enumerate(names):
        torch.save(dict(weights[i::shards]), folder / name)
    index = {key: names[at % shards] for at, (key, _) in enumerate(weights)}
    written = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "pytorch_model.bin.index.json").write_text(written)
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_bin_weights_are_read(tmp_path, shards, backend):
    before = threading.active_count()
    model = load_model(bin_folder(tmp_path, llama(), shards), device="cpu", backend=backend)
    torch.testing.assert_close(logits(model), logits(llama()), atol=1e-5, rtol=0)
    record = load_record(model)
    assert record is not None
    assert record.compared.startswith("logits equal Hugging Face's")
    assert threading.active_count() == before, "a conversion in the background"


def test_safetensors_are_preferred(tmp_path):
    bin_folder(tmp_path, llama(seed=1))
    llama(seed=0).save_pretrained(tmp_path)
    torch.testing.assert_close(
        logits(load_model(tmp_path, device="cpu")), logits(llama(0)), atol=1e-5, rtol=0
    )


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["beside the weights", "instead of a weight", "as a plain pickle"])
def test_a_pickled_object_is_refused_and_not_run(tmp_path, place):
    folder, made = tmp_path / "model", tmp_path / "it-ran"
    folder.mkdir()
    bin_folder(folder, llama())
    weights = llama().state_dict() | {
        "more" if place.startswith("beside") else "lm_head.weight": Payload(made)
    }
    if place == "as a plain pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(weights["lm_head.weight"]))
    else:
        torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(LoadError, match=r"tensors and nothing else.*nothing in it was run.*\[model-pickle\]"):
        load_model(folder, device="cpu")
    assert not made.exists()
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert made.exists(), "the payload would not have run"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", ["safetensors", "bin"])
@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_half_precision_stays_as_it_is(tmp_path, dtype, stored, backend):
    """Type and, number for number, the weights."""
    hf = llama(dtype=dtype)
    hf.save_pretrained(tmp_path) if stored == "safetensors" else bin_folder(tmp_path, hf)
    model = load_model(tmp_path, device="cpu", backend=backend)
    assert as_adapter(model).dtype == dtype
    assert torch.equal(model.W_E.detach(), hf.get_input_embeddings().weight)
    record = load_record(model)
    assert record is not None
    assert record.quantisation is None


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    llama().config.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"must hold weights, .* holds \['config.json'\]"):
        load_model(tmp_path)
    bin_folder(tmp_path, llama(), shards=3)
    (tmp_path / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(LoadError, match="could not load the model"):
        load_model(tmp_path)
    bin_folder(tmp_path, llama(), shards=3)
    torch.save({}, tmp_path / "pytorch_model-00002-of-00003.bin")
    with pytest.raises(LoadError, match=r"every weight must be in the files; .* lacks \d+"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model-00002-of-00003.bin").write_bytes(b"cut short")
    with pytest.raises(LoadError):
        load_model(tmp_path)
