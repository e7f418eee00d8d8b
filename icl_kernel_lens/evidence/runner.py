"""The one loop over prompts: batches of like length, a progress bar, and nothing left behind.

`read` and every intervention run through here, so that batching is done, and will be made better, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tqdm.auto import tqdm

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models import Lens
from icl_kernel_lens.prompts import PromptSet

BUDGET = 2**26
"""Most attention weights (batch · head · position²) alive in one layer: 256 MiB in float32."""
LARGEST_BATCH = 32


def batches(prompts: PromptSet, lens: Lens, batch_size: int | None) -> Iterator[list[int]]:
    """Prompt numbers in batches, sorted by length so that little is padded.

    Without a size, as many as keep one layer's attention within the budget, at most 32.
    """
    if batch_size is not None and batch_size < 1:
        raise PromptError(f"batch_size must be at least 1; got {batch_size}.")
    order = prompts.lengths.argsort(stable=True, descending=True).tolist()
    at = 0
    while at < len(order):
        longest = int(prompts.lengths[order[at]])
        fit = BUDGET // (lens.shape.heads * longest**2)
        size = batch_size or max(1, min(LARGEST_BATCH, fit))
        yield order[at : at + size]
        at += size


def run_batches(
    prompts: PromptSet,
    lens: Lens,
    step: Callable[[list[int]], None],
    *,
    batch_size: int | None,
    progress: bool,
    name: str,
) -> None:
    """Call `step` with the prompt numbers of every batch, under one progress bar."""
    check_context(prompts, lens)
    with tqdm(total=len(prompts), desc=name, unit="prompt", disable=not progress) as bar:
        for numbers in batches(prompts, lens, batch_size):
            step(numbers)
            bar.update(len(numbers))


def check_context(prompts: PromptSet, lens: Lens) -> None:
    """Refuse prompts that the model cannot hold, before anything runs."""
    context = lens.shape.context
    answer = int(prompts.label_lengths.max()) - 1 if prompts.score_on == "sequence" else 0
    if context is not None and (longest := int(prompts.lengths.max()) + answer) > context:
        count = int((prompts.lengths + answer > context).sum())
        starts = prompts.demo_spans[..., 0]
        excess = prompts.lengths + answer - context
        # Demonstrations are dropped from the end: the last k cost what lies between them and the test.
        saved = prompts.demo_spans[:, -1:, 1] - starts if prompts.demos else starts
        fit = int((saved >= excess[:, None]).sum(1).where(excess > 0, prompts.demos).min())
        raise PromptError(
            f"a prompt must fit the model's context of {context} tokens; {count} of {len(prompts)} do "
            f"not (the longest needs {longest}). {fit} demonstrations would fit every prompt."
        )
    tokens = prompts.tokens
    biggest = max(int(tokens.max()), int(prompts.label_sequences.max()))
    if biggest >= lens.shape.vocab or int(tokens.min()) < 0:
        raise PromptError(
            f"token ids must lie in 0…{lens.shape.vocab - 1} for {lens.name}; found "
            f"{biggest if biggest >= lens.shape.vocab else int(tokens.min())}. "
            "Were the prompts made for another model?"
        )
