"""Necessity and sufficiency: the answer without some heads' label edges, and with theirs alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from math import comb, prod
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Head, HeadRef
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.interventions.cuts import cutting
from icl_kernel_lens.interventions.engine import change_rows
from icl_kernel_lens.interventions.validate import check_heads, check_intervened
from icl_kernel_lens.models.adapter import InterceptableAdapter
from icl_kernel_lens.models.attention_passes import Prefix
from icl_kernel_lens.models.verify import verify_model
from icl_kernel_lens.prompts.label_edges import check_offsets, label_keys
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.ablation_curves import AblationCurves, Cut, Side
from icl_kernel_lens.results.head_ranking import HeadRanking
from icl_kernel_lens.run.progress import ROW, work
from icl_kernel_lens.run.runner import run_prompts, tokens_to_run
from icl_kernel_lens.run.variants import Row, editable, keep, look_at, own_tokens

MOST_SETS = 100_000
TRIES = 50
"""Draws of a new set, for each one wanted, before those there are must do."""


@checked
def ablation_curves(
    model: Any,
    prompts: PromptSet,
    heads: HeadRanking | Sequence[Head | str],
    *,
    cuts: Sequence[Cut] = ("renormalised",),
    offsets: Sequence[int] | None = None,
    random_sets: int = 100,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> AblationCurves:
    """How well the model answers as label edges of the first k heads are cut, and as only theirs are kept.

        necessity(k)      the answer position's edges to the labels (all their tokens) cut in heads 1..k
        sufficiency(k)    cut in all heads but 1..k;   (accuracy − floor) / (ceiling − floor) as a share
        floor, ceiling    cut in every head, in none

    `heads` is a ranking (its confirmed kernel heads, the largest effect first) or heads in an order of your own, such as
    `[*ranking.heads, *ranking.of("driver")]` or `["L2H1", (2, 3)]`. What takes the place of the edges, one or several of:

        renormalised    the head's weights on everything else, scaled up to the same sum
        zeroed          nothing: z' = z − Σ_i A_i v_i
        mean            z' = z − Σ_i A_i v_i + its mean over these prompts

    `offsets` says which tokens' edges are a label's (see `knock_out`): by default the ranking's, or 0, the label with all its
    tokens.

    Beside each k stand the same for `random_sets` sets of k other heads, as many in each layer as the first k have,
    without the k heads themselves; where a layer does not hold enough, all sets there are, and further ones from
    all layers (`matched` tells them apart).

    Draw prompts that the heads were not located on. Does not show: that nothing else helps: the floor's distance from
    chance says how much comes in otherwise (`notes()`); nor what the heads compute from the labels they read.

    Raises: ResultError: no heads, or none such in the model. ModelError: attention cannot be changed exactly.
            PromptError: prompts are scored on whole labels; an offset holds no token.
    """
    check_intervened(prompts, "model")
    if offsets is None:
        offsets = heads.offsets if isinstance(heads, HeadRanking) else (0,)
    check_offsets(prompts, offsets)
    adapter = editable(model)
    order = _order(adapter, heads, random_sets, cuts)
    shape = adapter.shape
    there = torch.ones(shape.layers, shape.heads, dtype=torch.bool)
    there[list(verify_model(adapter).missing)] = False
    first = torch.zeros(len(order) + 1, shape.layers, shape.heads, dtype=torch.bool)
    for k, head in enumerate(order, start=1):
        first[k:, head.layer, head.head] = True
    sets, matched = draw_sets(order, there, random_sets, seed)
    # What is cut: none, the first k, the drawn sets; then all but each of these.
    cells = torch.cat([first, sets.flatten(0, 1)])
    masks = torch.cat([cells, there & ~cells])
    folder = None if checkpoint is None else Path(checkpoint)
    mean, reading = None, tokens_to_run(prompts, adapter)
    one = reading + ROW * len(masks.flatten(1).unique(dim=0)) * len(prompts)
    with work("ablation curves", [*([reading] if "mean" in cuts else []), *[one] * len(cuts)], progress):
        if "mean" in cuts:
            mean = mean_read(adapter, prompts, folder and folder / "means", progress, offsets)
        answers = [
            _answers(model, prompts, masks, cut, mean, offsets, seed, folder and folder / cut, progress)
            for cut in cuts
        ]
    split = torch.stack([found for found, _ in answers]).unflatten(2, (2, -1))
    found: dict[Side, Tensor] = {"necessity": split[:, :, 0], "sufficiency": split[:, :, 1]}
    curves, draws = len(order) + 1, sets.shape[:2]
    chosen_on = heads.settings.get("prompts") if isinstance(heads, HeadRanking) else None
    return AblationCurves(
        heads=tuple(order),
        cuts=tuple(cuts),
        answers={side: a[:, :, :curves].clone() for side, a in found.items()},
        random={side: a[:, :, curves:].unflatten(2, tuple(draws)).clone() for side, a in found.items()},
        sets=sets,
        matched=matched,
        base=answers[0][1].base_label_scores.argmax(1),
        truth=prompts.test_labels,
        labels=prompts.labels,
        demo_set=prompts.demo_set,
        run=answers[0][1].run,
        settings={"seed": str(seed), "random_sets": str(random_sets), "offsets": str(tuple(offsets))}
        | ({"located on": "these prompts"} if chosen_on == prompts.digest() else {}),
    )


def _order(
    adapter: InterceptableAdapter,
    heads: HeadRanking | Sequence[Head | str],
    random_sets: int,
    cuts: Sequence[Cut],
) -> list[HeadRef]:
    """The heads in the order in which they are cut; refuses what cannot be run."""
    order = list(heads.heads) if isinstance(heads, HeadRanking) else HeadRef.each(heads)
    if not order:
        raise ResultError(
            "there must be heads to cut; none were confirmed by this ranking. Give heads as [(layer, head), ...]."
            if isinstance(heads, HeadRanking)
            else "there must be heads to cut; got none.",
            code="no-heads",
        )
    check_heads(adapter, order)
    if not 1 <= random_sets <= MOST_SETS:
        raise ResultError(
            f"random_sets must be at least 1 and at most {MOST_SETS:,}; got {random_sets}. 100 or more make an interval.",
            code="number-range",
        )
    if not cuts or not set(cuts) <= set(get_args(Cut)) or len(set(cuts)) < len(cuts):
        raise ResultError(
            f"cuts must be some of {', '.join(get_args(Cut))}, each once; got {tuple(cuts)!r}.",
            code="unknown-choice",
        )
    return order


def draw_sets(
    order: Sequence[HeadRef], there: Bool[Tensor, "layer head"], count: int, seed: int
) -> tuple[Bool[Tensor, "k draw layer head"], Bool[Tensor, "k draw"]]:
    """For each k, `count` sets of k heads that are not among the first k; and which match these layer by layer.

    Different sets as long as there are enough: first as many as there are that match, then from all layers, then again.
    """
    rng = random.Random(f"random head sets/{seed}")
    every = [HeadRef(layer, head) for layer, head in there.nonzero().tolist()]
    drawn = torch.zeros(len(order), count, *there.shape, dtype=torch.bool)
    matches = torch.zeros(len(order), count, dtype=torch.bool)
    for k in range(1, len(order) + 1):
        chosen = set(order[:k])
        free = [head for head in every if head not in chosen]
        if len(free) < k:
            raise ResultError(
                f"{k} heads are compared with random sets of as many others; the model has {len(free)} others. Give "
                "fewer heads.",
                code="number-range",
            )
        wanted = Counter(head.layer for head in chosen)
        by_layer = {layer: [head for head in free if head.layer == layer] for layer in wanted}
        possible = prod(comb(len(by_layer[layer]), n) for layer, n in wanted.items())
        found: dict[frozenset[HeadRef], bool] = {}
        for _ in range(TRIES * count):
            if len(found) >= min(count, possible):
                break
            found[frozenset(h for layer, n in wanted.items() for h in rng.sample(by_layer[layer], n))] = True
        for _ in range(TRIES * count):
            if len(found) >= min(count, comb(len(free), k)):
                break
            found.setdefault(frozenset(rng.sample(free, k)), False)
        for at, (members, match) in zip(range(count), cycle(found.items()), strict=False):
            matches[k - 1, at] = match
            for head in members:
                drawn[k - 1, at, head.layer, head.head] = True
    return drawn, matches


def _answers(
    model: Any,
    prompts: PromptSet,
    masks: Bool[Tensor, "set layer head"],
    cut: Cut,
    mean: Float[Tensor, "layer head d_head"] | None,
    offsets: Sequence[int],
    seed: int,
    checkpoint: Path | None,
    progress: bool,
) -> tuple[Tensor, Any]:
    """The label answered with each set's label edges cut (prompt, set), and the whole result."""

    def added(row: Row) -> Float[Tensor, "row d_head"]:
        assert mean is not None
        return mean.to(row.weights.device)[row.layer, row.heads]

    unique, where = masks.flatten(1).unique(dim=0, return_inverse=True)
    some = unique.any(1)
    sets = [mask.reshape(masks.shape[1:]).nonzero().tolist() for mask in unique[some]]
    effects = change_rows(
        model,
        prompts,
        cutting(
            prompts,
            "answer_reads_labels",
            [range(prompts.demos)],
            renormalise=cut == "renormalised",
            seed=seed,
            offsets=offsets,
        ),
        name=f"label edges, {cut}",
        title="label edges of sets of heads cut",
        heads=[[HeadRef(*head) for head in members] for members in sets],
        settings={"cut": cut, "offsets": tuple(offsets)},
        checkpoint=checkpoint,
        progress=progress,
        together=True,
        added=added if cut == "mean" else None,
    )
    # The empty set cuts nothing: the answer is the model's own.
    own = effects.base_label_scores.argmax(1)
    answers = own[:, None].repeat(1, len(unique))
    answers[:, some] = effects.answers()
    return answers[:, where], effects


def mean_read(
    adapter: InterceptableAdapter,
    prompts: PromptSet,
    checkpoint: Path | None,
    progress: bool,
    offsets: Sequence[int] = (0,),
) -> Float[Tensor, "layer head d_head"]:
    """Σ_i A_i v_i over the label tokens (those at `offsets`), each head's mean over the prompts."""
    own = own_tokens(adapter, int(prompts.lengths.max()))

    def step(numbers: list[int], shared: Prefix | None) -> dict[str, Tensor]:
        (number,) = numbers
        at, tokens = int(prompts.answer_pos[number]), prompts.tokens[number]
        keys = label_keys(prompts, number, offsets).flatten(0, 1).any(0)
        keys[at] = False  # the answer does not read itself as a label
        places = keys.nonzero()[:, 0]
        seen = look_at(adapter, tokens, at, places, ("value",), keep(adapter, tokens, at, shared, own))
        weights = seen.weights[..., places.to(seen.weights.device)]
        return {"read": torch.einsum("lhk,lhkd->lhd", weights, seen.vectors["value"].to(weights)).cpu()[None]}

    results, _ = run_prompts(
        prompts,
        adapter,
        step,
        name="averaging what is read from labels",
        settings={"what": "mean of label edges", "offsets": str(tuple(offsets))},
        batch_size=1,
        checkpoint=checkpoint,
        progress=progress,
    )
    return results["read"].mean(0)
