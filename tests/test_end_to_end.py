"""Real weights and real text, against Hugging Face; and what the report says of a model that cannot learn."""

from __future__ import annotations

import pytest
import torch
from support import SHARED, needs_hooked, needs_shared

from icl_kernel_lens import HeadScores, head_vote, load_model, load_task, read
from icl_kernel_lens.cli import main
from icl_kernel_lens.evidence.reading import answer
from icl_kernel_lens.scores.in_context import TaskAccuracy

BACKENDS = ["bridge", pytest.param("hooked", marks=needs_hooked)]


@needs_shared
@pytest.mark.parametrize("backend", BACKENDS)
def test_stories260k_on_sst2_equals_hugging_face(backend):
    from transformers import AutoModelForCausalLM

    folder = SHARED / "models" / "stories260k"
    model = load_model(folder, backend=backend, device="cpu")
    task = load_task(SHARED / "data" / "tasks" / "sst2.test.jsonl", label_words=("bad", "great"))
    prompts = task.prompts(model, demos=3, count=12, seed=1)
    assert prompts.info.prepend_bos is True
    evidence = read(model, prompts, keep=("label", "label_sum", "span_max"), progress=False)
    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    for p in range(12):
        length = int(prompts.lengths[p])
        with torch.no_grad():
            out = hf(prompts.tokens[p : p + 1, :length], output_attentions=True)
        rows = torch.stack([a[0, :, -1] for a in out.attentions])
        for i in range(3):
            start, end = prompts.demo_spans[p, i].tolist()
            first, last = prompts.label_spans[p, i].tolist()
            for pooling, expected in (
                ("label", rows[..., first]),
                ("label_sum", rows[..., first:last].sum(-1)),
                ("span_max", rows[..., start:end].amax(-1)),
                ("span_max_without_first", rows[..., max(1, start) : end].amax(-1)),
            ):
                torch.testing.assert_close(evidence.weights[pooling][p, ..., i], expected, atol=1e-5, rtol=0)
        expected = out.logits[0, -1, prompts.label_tokens[p]]
        found = evidence.label_scores[p]
        torch.testing.assert_close(found[1] - found[0], expected[1] - expected[0], atol=1e-4, rtol=0)
    assert head_vote(evidence).values.shape == (12, 5, 8)


@needs_shared
@pytest.mark.parametrize("backend", BACKENDS)
def test_label_sequences_equal_hugging_face(backend):
    """log P(label | prompt), teacher-forced, for labels of several tokens and different lengths."""
    from transformers import AutoModelForCausalLM

    folder = SHARED / "models" / "stories260k"
    model = load_model(folder, backend=backend, device="cpu")
    task = load_task(SHARED / "data" / "tasks" / "trec.train.jsonl")
    prompts = task.prompts(model, demos=2, count=6, seed=0, score_on="sequence")
    assert len(prompts.label_lengths[0].unique()) > 1
    evidence = read(model, prompts, progress=False, batch_size=4)
    torch.testing.assert_close(answer(model, prompts, progress=False), evidence.label_scores)
    hf = AutoModelForCausalLM.from_pretrained(folder)
    for p in range(6):
        prompt = prompts.tokens[p, : int(prompts.lengths[p])]
        for c in range(6):
            pieces = prompts.label_sequences[p, c, : int(prompts.label_lengths[p, c])]
            with torch.no_grad():
                logits = hf(torch.cat([prompt, pieces])[None]).logits[0].log_softmax(-1)
            start = len(prompt) - 1
            expected = sum(logits[start + k, t] for k, t in enumerate(pieces.tolist()))
            assert evidence.label_scores[p, c].item() == pytest.approx(float(expected), abs=1e-4)


@needs_shared
def test_the_report_says_that_there_is_no_in_context_learning(tmp_path):
    code = main(
        [
            "score", "--model", str(SHARED / "models" / "stories260k"), "--task",
            str(SHARED / "data" / "tasks" / "sst2.train.jsonl"), "--demos", "3", "--prompts", "40",
            "--score-on", "sequence", "--out", str(tmp_path), "--device", "cpu", "--no-progress",
        ]
    )  # fmt: skip
    assert code == 0
    accuracy = TaskAccuracy.load(tmp_path / "accuracy.safetensors")
    assert accuracy.gain()[1] <= 0
    assert "No in-context learning shown" in (tmp_path / "report.html").read_text()
    scores = HeadScores.load(tmp_path / "head_vote.safetensors")
    assert (scores.above_control() < 0.1).all()
