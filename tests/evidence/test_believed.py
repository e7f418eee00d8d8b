"""What is handed in is believed only where it is what it must be: evidence, caches, shards."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from icl_kernel_lens.errors import EvidenceMissing, LensError, LoadError, ResultError


@pytest.fixture(scope="module")
def read_once():
    from icl_kernel_lens import load_model, load_task, read

    model = load_model("mini", device="cpu")
    prompts = load_task("topics").prompts(model, demos=4, count=6, seed=0)
    return model, prompts, read(model, prompts, progress=False)


def test_evidence_of_other_weights_under_one_name_is_refused(read_once):
    from icl_kernel_lens import in_context_accuracy
    from icl_kernel_lens.readouts.similarity import prediction_similarity

    model, prompts, evidence = read_once
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.2)
    for use in (in_context_accuracy, prediction_similarity):
        use(model, prompts, evidence=evidence, progress=False)
        with pytest.raises(ResultError, match="reading of this model") as caught:
            use(other, prompts, evidence=evidence, progress=False)
        assert caught.value.code == "evidence-of-others"


def test_a_cache_that_holds_no_attention_is_refused(read_once):
    from icl_kernel_lens.evidence.reading import evidence_from_cache

    model, prompts, evidence = read_once
    logits, cache = model.run_with_cache(prompts.tokens)
    assert torch.allclose(
        evidence_from_cache(cache, prompts).weights["label"], evidence.weights["label"], atol=1e-5
    )
    pattern = "blocks.1.attn.hook_pattern"
    final = "blocks.2.hook_resid_post"

    def edited(name, edit):
        _, other = model.run_with_cache(prompts.tokens)
        other.cache_dict[name] = edit(other.cache_dict[name])
        return other

    for name, edit in (
        (pattern, lambda x: x * 7),
        (pattern, lambda x: x * float("nan")),
        (pattern, lambda x: x[:, :-1]),
        (pattern, lambda x: x[:3]),
        (final, lambda x: x[:, :-3]),
    ):
        with pytest.raises(EvidenceMissing):
            evidence_from_cache(edited(name, edit), prompts)
    for wrong in (logits.repeat(2, 1, 1), logits[:, :-3], logits[..., :5], logits[:2]):
        with pytest.raises(EvidenceMissing):
            evidence_from_cache(cache, prompts, logits=wrong)
    with pytest.raises(EvidenceMissing, match="ActivationCache"):
        evidence_from_cache({}, prompts)


def test_results_that_cannot_be_are_refused(read_once):
    _, _, evidence = read_once
    weights = evidence.weights["label"]
    for change in (
        {"weights": {"label": weights - 3}},
        {"sink": evidence.sink + 1000},
        {"sink": evidence.sink * float("nan")},
        {"model_tokens": evidence.model_tokens - 10_000},
        {"rows": evidence.rows * float("nan")},
        {"weights": {"label": weights + 2}},
    ):
        with pytest.raises(ResultError, match="must be whole"):
            replace(evidence, **change)


@pytest.mark.parametrize("spoil", ["zeros", "minus", "beyond", "one_row", "shape"])
def test_a_shard_that_is_no_part_of_the_run_is_refused(read_once, tmp_path, spoil):
    from icl_kernel_lens import read
    from icl_kernel_lens.results import codec

    model, prompts, _ = read_once
    read(model, prompts, checkpoint=tmp_path, progress=False)
    (path,) = tmp_path.glob("*.safetensors")
    stored = codec.read(path)
    tensors = dict(stored.tensors)
    numbers = tensors["numbers"]
    tensors |= {
        "zeros": {"numbers": numbers * 0},
        "minus": {"numbers": numbers * 0 - 1},
        "beyond": {"numbers": numbers + 100},
        "one_row": {"sink": tensors["sink"][:1]},
        "shape": {"sum.profile": tensors["sum.profile"][:1]},
    }[spoil]
    codec.write(path, replace(stored, tensors=tensors))
    with pytest.raises(LoadError, match=path.name) as caught:
        read(model, prompts, checkpoint=tmp_path, progress=False)
    assert caught.value.code == "checkpoint-damaged"


def test_sets_of_heads_have_names_of_their_own(read_once):
    from icl_kernel_lens import knock_out

    model, prompts, _ = read_once
    six = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    effects = knock_out(
        model, prompts, heads=[[*six, "L2H1"], [*six, "L2H3"]], controls=False, progress=False
    )
    assert len(set(effects.places["set"])) == 2
    with pytest.raises(ResultError, match="once"):
        knock_out(model, prompts, heads=[six, six], progress=False)
    for wrong in (
        {"renormalise": "no"},
        {"controls": "no"},
        {"seed": 1.5},
        {"seed": None},
        {"layers": [0, 0]},
    ):
        with pytest.raises(LensError):
            knock_out(model, prompts, progress=False, **wrong)
    knock_out(model, prompts, heads=["L2H1"], seed=2**70, progress=False)
