"""The one loop over prompts: batches of like length, a progress bar, and nothing left behind.

`read` and every intervention run through here, so that batching is done, and will be made better, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tqdm.auto import tqdm

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models import Lens
from icl_kernel_lens.prompts import PromptSet, check_fits

BUDGET = {"cpu": 2**24}
"""Most attention weights (batch · head · position²) alive in one layer: 64 MiB in float32 on a CPU, where
larger batches are slower; 1 GiB elsewhere."""
ELSEWHERE = 2**28
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
        fit = BUDGET.get(lens.device.type, ELSEWHERE) // (lens.shape.heads * longest**2)
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
    check_fits(prompts, lens)
    with tqdm(total=len(prompts), desc=name, unit="prompt", disable=not progress) as bar:
        for numbers in batches(prompts, lens, batch_size):
            step(numbers)
            bar.update(len(numbers))
