"""Provenance is of the model that was run, and names what it was loaded from."""

from __future__ import annotations

import torch
import transformers

from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.prompts.promptset import PromptInfo
from icl_kernel_lens.results.run_info import RunInfo, versions


def test_what_was_loaded_is_named(mini):
    run = RunInfo.of(as_adapter(mini), PromptInfo(task="topics"), "first_token", reading="as told")
    assert (run.source, run.dtype, run.device) == ("mini", "float32", "cpu")
    assert (run.layers, run.heads) == (mini.cfg.n_layers, mini.cfg.n_heads)
    assert run.kind == type(mini).__name__
    assert run.loaded_because
    assert (run.score_on, run.reading) == ("first_token", "as told")
    assert run.about == f"{run.model} on topics"


def test_a_model_made_by_the_user_has_no_source(tiny):
    run = RunInfo.of(as_adapter(tiny("llama")[0]), PromptInfo(task="ids"), "sequence")
    assert (run.source, run.revision, run.loaded_because) == (None, None, None)
    assert run.kind == "TransformerBridge"
    assert run.verification


def test_versions_are_those_that_run():
    found = versions()
    assert set(found) == {"python", "icl-kernel-lens", "torch", "transformer-lens", "transformers"}
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["transformers"] == transformers.__version__
