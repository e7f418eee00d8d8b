"""Prompts with one thing changed on purpose: their labels, label words, inputs, or the order of demonstrations.

`CORRUPTIONS` is the table of kinds, each of which is a function of its own. All but the last keep every
position, so that whatever is read from the two runs can be compared, or put from one into the other, position by
position; what would move a position is refused. They work on token ids: only label words given as text, and a new
order of prompts made from text, need a tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.corrupt_inputs import exchange_inputs, reorder_demos, replace_test_input
from icl_kernel_lens.prompts.corrupt_labels import map_labels, permute_labels, replace_label_words
from icl_kernel_lens.prompts.promptset import PromptSet

Corruption = Literal[
    "permute_labels",
    "map_labels",
    "unrelated_words",
    "exchange_inputs",
    "replace_test_input",
    "reorder_demos",
]

CORRUPTIONS: Mapping[Corruption, Callable[..., tuple[PromptSet, str]]] = {
    "permute_labels": permute_labels,
    "map_labels": map_labels,
    "unrelated_words": replace_label_words,
    "exchange_inputs": exchange_inputs,
    "replace_test_input": replace_test_input,
    "reorder_demos": reorder_demos,
}
"""What each kind does: a function that returns the changed prompts, and in words what was done."""


@checked
def corrupt(
    prompts: PromptSet,
    how: Corruption,
    *,
    seed: int,
    derange: bool = False,
    model: Any = None,
    words: Sequence[str] | Mapping[str, str] | Tensor | None = None,
) -> PromptSet:
    """The same prompts with one thing changed, and (but for `"reorder_demos"`) no position moved.

    `how`:
    - `"permute_labels"`: the labels are permuted among the demonstrations of a prompt, uniformly.
      `derange=True` draws uniformly among the permutations that change the class of every demonstration's label.
    - `"map_labels"`: every class's label is replaced by another class's, by one map for all prompts; with two
      classes they are exchanged. The map is in `info.corruption`.
    - `"unrelated_words"`: `words`, one a class, replace the label words, in the demonstrations and as answers.
      They are text (`model` brings the tokenizer; a dictionary is read by the classes) or token ids (`label`, or `prompt label`). Nothing is drawn.
    - `"exchange_inputs"`: the inputs are permuted among demonstrations of a prompt whose inputs have
      equally many tokens; labels stay. At least one demonstration gets another input.
    - `"replace_test_input"`: each test input gives way to one drawn from the other prompts' test inputs of
      equally many tokens, which none of its demonstrations shows; `test_labels` follows it.
    - `"reorder_demos"`: the demonstrations come in a random order. Prompts made from text are written anew with the
      tokenizer of `model`; of ready-made ids, the tokens of `demo_spans` move, and those between them stay (without
      `demo_spans`, position 0 belongs to the first demonstration). A kernel regression does not depend on the order.

    Prompts with the same `demo_set` get the same permutation or order, and go on sharing their demonstrations.
    What was done, and the share of labels or inputs that changed, stands in `info.corruption`. Permuted
    labels are the random labels of Min et al. (2022, section 4), except that each prompt keeps its label counts;
    mapped labels and unrelated words are the flipped and the semantically-unrelated labels of Wei et al. (2023).
    That no position moves is ours.

    Does not show: that a model ignores labels, where few changed: a permutation may leave most of them as they
    were. Under the first two kinds, `test_labels` stays the class of the test input before any mapping. Where
    classes mean something else in every prompt (the topics world), the `test_labels` of replaced test inputs
    are their classes in the prompts that they came from, and not the truth in those where they now stand.
    Exchanging inputs of one class leaves the pairing of inputs and labels as it was; see the share.
    Where a template begins with the text, the tokens of the first input may lack the space that those of the
    others carry; they are moved as they are. In ready-made ids without `demo_spans`, what separates
    demonstrations counts as input.

    Raises:   PromptError: a position would move (with the words or texts and their token counts), nothing
              can be exchanged, or a demonstration does not show its class's label.
    Example:

    >>> from icl_kernel_lens.evidence.small import small_evidence
    >>> corrupt(small_evidence().prompts, "map_labels", seed=0).info.corruption
    'map_labels, seed 0, classes 0→1, 1→0, 100.0% of labels changed'
    """
    _check_request(prompts, how, derange, words)
    options: dict[Corruption, dict[str, Any]] = {
        "permute_labels": {"derange": derange},
        "unrelated_words": {"words": words, "model": model},
        "reorder_demos": {"model": model},
    }
    found, what = CORRUPTIONS[how](prompts, seed, **options.get(how, {}))
    before = f"{prompts.info.corruption}; then " if prompts.info.corruption else ""
    return replace(found, info=replace(found.info, corruption=f"{before}{how}, seed {seed}, {what}"))


def _check_request(prompts: PromptSet, how: str, derange: bool, words: object) -> None:
    if how not in get_args(Corruption):
        raise PromptError(
            f"how must be one of {', '.join(map(repr, get_args(Corruption)))}; got {how!r}.",
            code="unknown-choice",
        )
    if derange and how != "permute_labels":
        raise PromptError(
            f'derange=True belongs to "permute_labels"; got it with {how!r}. Leave it out.',
            code="options-clash",
        )
    if (words is None) is (how == "unrelated_words"):
        got = "none were given" if words is None else f"got them with {how!r}"
        raise PromptError(
            f'words=, one a class, belong to "unrelated_words"; {got}. '
            + ("Give the new label words." if words is None else "Leave them out."),
            code="options-clash",
        )
    if prompts.demos == 0 and how != "replace_test_input":
        raise PromptError(
            f"{how!r} changes demonstrations, and these prompts have none. Draw prompts with demos=1 or more.",
            code="too-few-demonstrations",
        )
