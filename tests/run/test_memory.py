"""How many prompts fit, and what happens to those that do not."""

from __future__ import annotations

import pytest
import torch
from architectures import hf_model

from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import bridge_from_hf
from icl_kernel_lens.run import memory


def test_automatic_batches_follow_the_memory_model(monkeypatch):
    """Longer prompts, and squares written out, make smaller batches; a shared prefix makes larger ones."""
    adapter = as_adapter(bridge_from_hf(hf_model("llama")))
    short = memory.prompts_at_once(adapter, 400, 0, fast=True)
    assert memory.prompts_at_once(adapter, 1600, 0, fast=True) < short
    assert memory.prompts_at_once(adapter, 400, 0, fast=False) < short
    assert memory.prompts_at_once(adapter, 400, 380, fast=True) > short
    assert memory.prompts_at_once(adapter, 10**7, 0, fast=False) == 1
    monkeypatch.setattr(memory, "CPU_BYTES", memory.CPU_BYTES // 4)
    assert memory.prompts_at_once(adapter, 400, 0, fast=True) == pytest.approx(short / 4, abs=1)
    assert memory.prefix_tokens(adapter) == memory.CPU_PREFIX_BYTES // (2 * 3 * 2 * 8 * 4)


def test_pieces_are_halved_and_stay_small():
    """Every item is run once, in order; a size that did not fit is not tried again."""
    tried, fits = [], 3

    def run(piece):
        tried.append(len(piece))
        if len(piece) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sum(piece)

    found = list(memory.in_pieces(range(17), 8, run))
    assert [list(piece) for piece, _ in found] == [[2 * i, 2 * i + 1] for i in range(8)] + [[16]]
    assert [total for _, total in found] == [sum(piece) for piece, _ in found]
    assert tried == [8, 4, *[2] * 8, 1]


@pytest.mark.parametrize("error", [RuntimeError("can't allocate memory"), RuntimeError("a real mistake")])
def test_what_cannot_be_halved_is_raised(error):
    def run(piece):
        raise error

    with pytest.raises(RuntimeError, match=str(error)):
        list(memory.in_pieces([1], 8, run))
    assert memory.exhausted(error) is ("memory" in str(error))


def test_an_error_of_the_caller_is_the_callers():
    """What is done with a result is not taken for a run that did not fit."""
    ran = []

    def use():
        for _ in memory.in_pieces(range(4), 2, ran.append):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        use()
    assert len(ran) == 1


@pytest.mark.parametrize(
    ("count", "passes"),
    [(80, [80]), (90, [90]), (91, [46, 45]), (160, [80, 80]), (181, [61, 61, 59]), (1, [1])],
)
def test_a_few_variants_more_are_no_pass_of_their_own(monkeypatch, count, passes):
    monkeypatch.setattr(memory, "prompts_at_once", lambda *_, **__: 80)
    adapter = as_adapter(bridge_from_hf(hf_model("llama")))
    assert list(memory.in_batches(adapter, range(count), 9, 0, len)) == passes
