"""This module repeats the search for heads on several sets of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.locate.search import locate_heads
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.criteria import Criteria
from icl_kernel_lens.results.stability import Stability


def stability(
    model: Any,
    prompts: Mapping[str, PromptSet],
    *,
    criteria: Criteria | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Stability:
    """`locate_heads` on several sets of prompts, by name, and how far they agree.

        stability(model, {
            "seed 0": task.prompts(model, demos=16, count=400, seed=0),
            "seed 1": task.prompts(model, demos=16, count=400, seed=1),
            "reordered": corrupt(prompts, "reorder_demos", seed=0, model=model),
            "other task": other.prompts(model, demos=16, count=400, seed=0),
        })

    Another template is another task: `dataclasses.replace(task, template=...)`.

    `checkpoint` names a folder in which finished prompts are kept, one folder a ranking; the same call goes on.
    Does not show: more than the prompts given can; a kernel head in all of them may be none on another task.

    Raises: as `locate_heads`, before anything is lost: a checkpoint keeps the rankings' finished prompts.
            ResultError: fewer than two sets of prompts.
    """
    if not isinstance(prompts, Mapping) or len(prompts) < 2:
        raise ResultError(
            'at least two sets of prompts can be compared, each with its name: {"seed 0": prompts, "seed 1": others}; got '
            f"{len(prompts)} in a {type(prompts).__name__}.",
            code="not-comparable",
        )
    folder = None if checkpoint is None else Path(checkpoint)
    return Stability(
        {
            name: locate_heads(
                model,
                some,
                criteria=criteria,
                seed=seed,
                checkpoint=None if folder is None else folder / f"{at}",
                progress=progress,
            )
            for at, (name, some) in enumerate(prompts.items())
        }
    )
