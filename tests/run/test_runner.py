"""Batches that fit, memory that runs out, progress: the loop that reads and interventions share."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from architectures import hf_model
from support import same_evidence, shared_prompts, uneven_prompts

from icl_kernel_lens import Evidence, read
from icl_kernel_lens.errors import PromptError, RunError
from icl_kernel_lens.models.load import bridge_from_hf
from icl_kernel_lens.models.transformer_lens_adapters import TransformerLensAdapter
from icl_kernel_lens.prompts.relabel import relabelled, stacked
from icl_kernel_lens.run import runner
from icl_kernel_lens.run.checkpoint import Checkpoint
from icl_kernel_lens.run.prefixes import unshared
from icl_kernel_lens.scores.in_context import answer


class Counting:
    """A model's `forward`, counted by prompts and made to fail on demand."""

    def __init__(self, monkeypatch, fail=None):
        self.batches, self.shapes, self.tokens = [], [], 0
        original = TransformerLensAdapter.forward

        def forward(adapter, tokens, lengths, positions, **options):
            if fail is not None:
                fail(tokens)
            logits = original(adapter, tokens, lengths, positions, **options)
            self.batches.append(len(tokens))
            self.shapes.append(tuple(tokens.shape))
            self.tokens += int(lengths.sum())
            return logits

        monkeypatch.setattr(TransformerLensAdapter, "forward", forward)


def out_of_memory(kind):
    if kind == "gpu":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_a_batch_that_does_not_fit_is_halved(tiny, monkeypatch, kind):
    """At the first batch: the run finishes, with the same numbers, and no prompt is run twice."""
    model, _ = tiny("llama")
    prompts = uneven_prompts(count=11)
    expected = read(model, prompts, progress=False, batch_size=11)
    counting = Counting(monkeypatch, lambda tokens: out_of_memory(kind) if len(tokens) > 3 else None)
    same_evidence(read(model, prompts, progress=False, batch_size=11), expected)
    assert sorted(counting.batches) == [2, 3, 3, 3]
    assert counting.tokens == int(prompts.lengths.sum())


def test_one_prompt_that_does_not_fit_says_so(tiny, monkeypatch, tmp_path):
    """And what was finished is kept."""
    model, _ = tiny("llama")
    prompts = uneven_prompts(count=6)
    shortest = int(prompts.lengths.min())
    with monkeypatch.context() as patch:
        Counting(patch, lambda tokens: out_of_memory("cpu") if tokens.shape[1] == shortest else None)
        with pytest.raises(RunError, match=r"one prompt must fit into memory; prompt \d does not, on cpu"):
            read(model, prompts, progress=False, batch_size=1, checkpoint=tmp_path)
    (shard,) = tmp_path.glob("*.safetensors")
    counting = Counting(monkeypatch)
    found = read(model, prompts, progress=False, batch_size=1, checkpoint=tmp_path)
    assert sum(counting.batches) == int((prompts.lengths == shortest).sum())
    assert shard.exists()
    same_evidence(found, read(model, prompts, progress=False))
    assert Checkpoint(None, {}).load(1) == []


def test_a_prefix_that_does_not_fit_says_so(tiny, monkeypatch):
    model, _ = tiny("llama")
    prompts = shared_prompts().select(range(6))
    read(model, prompts, progress=False)
    Counting(monkeypatch, lambda tokens: out_of_memory("gpu") if tokens.shape[1] > 20 else None)
    with pytest.raises(RunError, match=r"\d+ tokens must fit into memory once; on cpu they do not"):
        read(model, prompts, progress=False)


def test_other_errors_are_not_taken_for_memory(tiny, monkeypatch):
    def fail(_tokens):
        raise RuntimeError("a real mistake")

    model, _ = tiny("llama")
    read(model, uneven_prompts(), progress=False)
    Counting(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="a real mistake"):
        read(model, uneven_prompts(), progress=False)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_sizes_are_checked(tiny, batch_size):
    with pytest.raises(PromptError, match='batch_size must be at least 1, or "auto"'):
        read(tiny("llama")[0], uneven_prompts(), batch_size=batch_size)


def test_one_bar_counts_prompts(tiny, capsys):
    read(tiny("llama")[0], shared_prompts(), progress=True)
    shown = capsys.readouterr().err
    assert "7/7 prompts" in shown
    assert "100%" in shown
    read(tiny("llama")[0], shared_prompts(), progress=False)
    assert capsys.readouterr().err == ""


def test_shared_tokens_are_run_once(tiny, monkeypatch):
    model, _ = tiny("gpt2")
    prompts = shared_prompts()
    read(model, prompts, progress=False)
    answer(model, prompts, progress=False)  # what is measured of a model once
    demos = prompts.label_pos[:, -1] + 1
    unique = int(demos[0] + demos[3] + demos[6] + (prompts.lengths - demos).sum())
    for run in (read, answer):
        with monkeypatch.context() as patch:
            counting = Counting(patch)
            run(model, prompts, progress=False)
        assert counting.tokens == unique < int(prompts.lengths.sum())


def test_answers_alone_equal_the_reading_s(tiny):
    model, _ = tiny("llama")
    prompts = shared_prompts()
    torch.testing.assert_close(
        answer(model, prompts, progress=False), read(model, prompts, progress=False).label_scores
    )


def test_whole_rows_are_those_of_the_first_prompts(tiny):
    """In whichever order batches come, longest first."""
    model, _ = tiny("llama")
    prompts = uneven_prompts(count=13)
    assert prompts.lengths.argsort(descending=True)[:5].max() >= 8, "a later prompt is read among the first"
    rows = read(model, prompts, progress=False, batch_size=13).rows
    first = read(model, prompts.select(range(8)), progress=False, batch_size=1).rows
    torch.testing.assert_close(rows, first, atol=1e-5, rtol=0)


def test_evidence_says_which_way_it_was_read(tiny, monkeypatch):
    """Shared or not, and why not: a forgotten hook is named."""
    model, prompts = bridge_from_hf(hf_model("llama")), shared_prompts()
    shared = read(model, prompts, progress=False)
    assert "rows rebuilt from q and k; " in repr(shared)
    assert f"of {int(prompts.lengths.sum())} tokens run, as prompts share the others" in repr(shared)
    assert "they share no leading tokens" in read(model, uneven_prompts(), progress=False).run.reading
    model.blocks[1].attn.hook_z.add_hook(lambda z, hook: None)
    assert "the model has hooks (blocks.1." in read(model, prompts, progress=False).run.reading
    model.blocks[1].attn.hook_pattern.add_hook(lambda pattern, hook: None)
    assert read(model, prompts, progress=False).run.reading.startswith(
        "rows taken from hook_pattern; prompts read whole"
    )


def test_the_reading_is_saved(tiny, tmp_path):
    evidence = read(tiny("llama")[0], shared_prompts(), progress=False)
    assert Evidence.load(evidence.save(tmp_path / "e")).run.reading == evidence.run.reading != ""


def relabelled_prompts():
    """Two sets with each label replaced singly: prompts that share ever more of their demonstrations."""
    prompts = shared_prompts(sets=2, tests=3, demos=6)
    rows = []
    for at in range(prompts.demos):
        labels = prompts.demo_labels.clone()
        labels[:, at] = (labels[:, at] + 1) % 3
        rows.append(relabelled(prompts, torch.arange(len(prompts)), labels))
    return stacked([prompts, *rows])


FAMILIES = ("gpt2", "llama", "gemma2", "bloom")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_begins_alike_is_run_in_few_passes(tiny, monkeypatch, family):
    """The same numbers as of prompts on their own, of prompts behind different leading tokens in one batch."""
    model, _ = tiny(family)
    prompts = relabelled_prompts()
    assert prompts.lengths.unique().numel() > 3
    with monkeypatch.context() as patch:
        patch.setattr(runner, "sharing_of", lambda which, *_: (unshared(len(which)), "each alone"))
        expected = read(model, prompts, progress=False)
    counting = Counting(monkeypatch)
    found = read(model, prompts, progress=False)
    same_evidence(found, expected)
    tokens, passes = counting.tokens, len(counting.batches)
    assert "as prompts share the others" in found.run.reading
    with monkeypatch.context() as patch:
        patch.setattr(runner, "pass_cost", lambda *_: 0)
        same_evidence(read(model, prompts, progress=False), expected)
    apart, passes_apart = counting.tokens - tokens, len(counting.batches) - passes
    assert passes < passes_apart / 3
    assert apart < tokens < int(prompts.lengths.sum()), "passes are saved, and what is shared still is"
    torch.testing.assert_close(
        answer(model, prompts, progress=False), expected.label_scores, atol=1e-4, rtol=0
    )


def test_several_that_do_not_fit_together_are_run_in_halves(tiny, monkeypatch):
    """Leading tokens as well as the prompts behind them."""
    model, _ = tiny("llama")
    prompts = relabelled_prompts()
    expected = read(model, prompts, progress=False)
    counting = Counting(monkeypatch, lambda tokens: out_of_memory("cpu") if len(tokens) > 4 else None)
    same_evidence(read(model, prompts, progress=False), expected)
    assert max(counting.batches) <= 4


def test_prompts_of_unlike_length_are_not_padded_to_one_another(tiny, monkeypatch):
    """Where padding costs more than passes; a size that was asked for is kept."""
    model, _ = tiny("llama")
    prompts = uneven_prompts()
    expected = read(model, prompts, batch_size=1, progress=False)
    counting = Counting(monkeypatch)

    def padded(each_pass, batch_size="auto"):
        counting.shapes.clear()
        monkeypatch.setattr(runner, "cost_of_pass", lambda adapter: each_pass)
        same_evidence(read(model, prompts, batch_size=batch_size, progress=False), expected)
        return len(counting.shapes), sum(a * b for a, b in counting.shapes) - int(prompts.lengths.sum())

    (few, much), (many, none) = padded(10**6), padded(0)
    assert few < many, (few, many)
    assert none == 0 < much
    size = len(prompts) - 1
    assert padded(0, size)[0] == 2
    assert [rows for rows, _ in counting.shapes] == [size, 1], "so many as were asked for, and the last"


def test_what_is_run_again_is_run_in_the_same_batches(tiny, monkeypatch, tmp_path):
    """So that an interrupted run ends with the very numbers of one that was not."""
    model, _ = tiny("llama")
    prompts = relabelled_prompts()
    whole = answer(model, prompts, batch_size=4, progress=False)
    passes = 0

    def interrupt(_tokens):
        nonlocal passes
        passes += 1
        if passes == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        Counting(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            answer(model, prompts, batch_size=4, checkpoint=tmp_path, progress=False)
    counting = Counting(monkeypatch)
    again = answer(model, prompts, batch_size=4, checkpoint=tmp_path, progress=False)
    assert again.equal(whole)
    resumed = Counter(counting.shapes)
    answer(model, prompts, batch_size=4, progress=False)
    every = Counter(counting.shapes) - resumed
    assert resumed <= every
    assert resumed.total() < every.total() - 4, "finished prompts are not run again"
