"""What cannot be intervened on is refused, and the message says why."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interventions.huggingface import other
from support import uneven_prompts

from icl_kernel_lens import knock_out, patch_labels, substitute_kernel
from icl_kernel_lens.errors import PromptError, ResultError


def test_what_cannot_be_compared_is_refused(tiny):
    model, _ = tiny("llama", "bridge")
    clean = uneven_prompts(count=3)
    corrupted = other(clean)
    moved = replace(corrupted, label_spans=corrupted.label_spans - 1)
    whole = replace(clean, score_on="sequence")
    blind = replace(clean, test_labels=None)
    for options, error, reason in (
        ({"clean": clean, "corrupted": moved}, PromptError, "label_spans of prompt 0 is"),
        ({"clean": clean, "corrupted": corrupted.select([0, 1])}, PromptError, "correspond one to one"),
        ({"clean": whole, "corrupted": corrupted}, PromptError, "scored on whole labels"),
        ({"clean": clean, "corrupted": corrupted, "offsets": (40,)}, PromptError, "offset 40 from the label"),
        ({"clean": clean, "corrupted": corrupted, "offsets": ()}, PromptError, "offsets must name"),
        ({"clean": blind, "corrupted": corrupted, "against": "truth"}, PromptError, "needs true labels"),
        ({"clean": clean, "corrupted": corrupted, "heads": [(3, 0)]}, ResultError, "L3H0 is not"),
        ({"clean": clean, "corrupted": corrupted, "heads": []}, ResultError, "at least one"),
        (
            {"clean": clean, "corrupted": corrupted, "activation": "key", "factor": "values"},
            ResultError,
            "Leave factor out",
        ),
        (
            {"clean": clean, "corrupted": corrupted, "activation": "residual", "heads": [(0, 1)]},
            ResultError,
            "whole layer",
        ),
        ({"clean": clean, "corrupted": corrupted, "offsets": (0, 0)}, PromptError, "named once"),
        ({"clean": clean, "corrupted": corrupted, "at": "answer"}, ResultError, 'leave out at="answer"'),
        (
            {"clean": clean, "corrupted": corrupted, "activation": "head_output", "path": "direct"},
            ResultError,
            'at="answer"; got',
        ),
        (
            {"clean": clean, "corrupted": corrupted, "path": "direct", "method": "attribution"},
            ResultError,
            "leave out method",
        ),
        ({"clean": clean, "corrupted": corrupted, "heads": ["L3H0"]}, ResultError, "L3H0 is not"),
        ({"clean": clean, "corrupted": corrupted, "heads": ["2.1"]}, ResultError, 'a name such as "L3H7"'),
    ):
        with pytest.raises(error, match=reason):
            patch_labels(model, progress=False, **{"offsets": (0,)} | options)
    for options, reason in (
        ({"heads": [(0, 1), (0, 1)]}, "named once"),
        ({"heads": [(0, 1)], "layers": [1]}, "not both"),
        ({"heads": [[(0, 9)]]}, "L0H9 is not"),
        ({"demo": 3}, "a number below 3"),
    ):
        with pytest.raises(ResultError, match=reason):
            knock_out(model, clean, progress=False, **options)


def test_kernels_that_are_none_are_refused(tiny):
    model, _ = tiny("llama", "bridge")
    prompts = uneven_prompts(count=2)
    good = torch.ones(2, prompts.demos)
    for kernel, reason in (
        (good[:, :2], "floating-point weights of shape"),
        (-good, "at least 0"),
        (good * 0, "not 0 for all"),
        (good * torch.nan, "finite"),
        (lambda number, own: own[:, :1], "what the kernel's function returns"),
        (lambda number, own: own.tolist(), "it is list"),
        (lambda own: own, "must take a prompt's number.*it raised TypeError"),
    ):
        with pytest.raises(ResultError, match=reason):
            substitute_kernel(model, prompts, kernel, progress=False)
