"""Evidence: its file, what it must hold, and what it may stand for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support import unchecked, uneven_prompts

from icl_kernel_lens import Evidence, read
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.models.adapter import as_adapter


def test_evidence_survives_a_file(tmp_path, tiny):
    model, _ = tiny("llama")
    evidence = read(model, uneven_prompts(), progress=False)
    again = Evidence.load(evidence.save(tmp_path / "deep" / "e.safetensors"))
    for name, weights in evidence.weights.items():
        assert torch.equal(again.weights[name], weights)
    assert again.run == evidence.run
    assert again.prompts.strings == evidence.prompts.strings
    assert torch.equal(again.prompts.demo_spans, evidence.prompts.demo_spans)
    assert repr(again) == repr(evidence)
    assert not list(tmp_path.rglob("*.partial"))
    evidence.check_of(as_adapter(model), uneven_prompts())


def test_it_stands_for_its_prompts_and_its_model_alone():
    found = small_evidence()
    adapter = SimpleNamespace(name="by hand", kind="none", shape=SimpleNamespace(layers=2, heads=2))
    check = unchecked(Evidence.check_of)
    check(found, adapter, found.prompts)
    check(found, adapter, replace(found.prompts, demo_set=torch.zeros(4, dtype=torch.long)))
    with pytest.raises(ResultError, match="must be a reading of these 2 prompts; it is of 4 others"):
        check(found, adapter, found.prompts.select([0, 1]))
    with pytest.raises(ResultError, match="must be a reading of these 4 prompts"):
        check(found, adapter, replace(found.prompts, test_labels=1 - found.prompts.test_labels))
    for change in (
        {"name": "another"},
        {"kind": "HookedTransformer"},
        {"shape": SimpleNamespace(layers=3, heads=2)},
    ):
        with pytest.raises(
            ResultError, match=r"of this model; it was read from by hand \(none, 2 × 2 heads\)"
        ):
            check(found, SimpleNamespace(**{**vars(adapter), **change}), found.prompts)


def test_what_evidence_must_hold():
    found = small_evidence()
    for change, words in (
        ({"weights": {}}, "weights must hold a pooling"),
        ({"weights": {"mean": found.weights["label"]}}, "which are no poolings"),
        ({"missing": {2: "none"}}, r"lie in 0…1; they are \[2\]"),
        ({"label_scores": found.label_scores * torch.inf}, "label scores must be finite"),
        ({"profile": found.profile[:, :, :-1]}, "as many points for every text"),
        ({"rows": found.rows.repeat(2, 1, 1, 1)}, "rows must be of the first prompts"),
        ({"run": replace(found.run, layers=3)}, "its heads are"),
    ):
        with pytest.raises(ResultError, match=words):
            replace(found, **change)
