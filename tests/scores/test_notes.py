"""The sentences that keep a reader from believing too much."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from icl_kernel_lens import head_vote
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.scores.notes import notes_of


def test_each_sentence_where_it_applies_and_not_elsewhere():
    evidence = small_evidence()
    assert notes_of(evidence, head_vote(evidence)) == []
    silent = replace(evidence, model_tokens=torch.zeros(4, dtype=torch.long))
    (said,) = notes_of(silent, head_vote(silent))
    assert said.startswith("In 0.0% of the prompts the model's likeliest next token begins a label word")
    constant = replace(evidence, label_scores=torch.tensor([[1.0, 0.0]]).repeat(4, 1))
    told = notes_of(constant, head_vote(constant))
    assert any("same answer to every prompt" in t for t in told)
    assert any("No head that reads the labels is above its strongest control" in t for t in told)
    scores = head_vote(evidence)
    feeble = {**scores.companions, "label_attention": torch.full((2, 2), 0.004)}
    (said,) = notes_of(evidence, replace(scores, companions=feeble))
    assert said.startswith("No head that reads the labels")


UNCHECKED = """
import pytest
import torch
import icl_kernel_lens as ikl
from icl_kernel_lens.errors import LensError
from icl_kernel_lens.evidence.small import small_evidence

evidence = small_evidence()
model = ikl.load_model("mini", device="cpu")
task = ikl.load_task("topics")
prompts = task.prompts(model, demos=2, count=2)
for call in (
    lambda: ikl.head_vote(prompts),
    lambda: ikl.head_vote(evidence, against="gold"),
    lambda: ikl.head_vote(evidence, pooling="foo"),
    lambda: ikl.read(model, task),
    lambda: ikl.read(model, prompts, keep="label"),
    lambda: ikl.read(model, prompts, keep=("foo",)),
    lambda: task.prompts(model, demos=2, count=2, score_on="foo"),
    lambda: evidence.token_view(["head 1"]),
    lambda: evidence.token_view(["L9H1"]),
):
    try:
        call()
    except LensError as error:
        print(error)
print(evidence.token_view([(0, 1)]).labels)
"""


@pytest.mark.once
def test_wrong_words_and_objects_are_explained_without_type_checks():
    """As users run it, where nothing checks types for them."""
    import subprocess
    import sys

    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", UNCHECKED],
        capture_output=True,
        text=True,
        check=True,
    )
    said = run.stdout.splitlines()
    expected = (
        "evidence must be an Evidence; it is ",
        "against must be one of 'model', 'truth'; it is 'gold'",
        "pooling must be one of 'label', ",
        "prompts must be a PromptSet; it is ",
        "keep must be a list, each one of 'label', ",
        "keep must be a list, each one of 'label', ",
        "score_on must be one of 'first_token', 'sequence'; it is 'foo'",
        "a head is a pair (layer, head) or a name such as \"L3H7\", both from 0; got 'head 1'",
        "there is no head L9H1; layers run to 1, heads to 1",
        "['L0H1']",
    )
    assert len(said) == len(expected), run.stdout
    for line, start in zip(said, expected, strict=True):
        assert line.startswith(start)
