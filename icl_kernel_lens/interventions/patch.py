"""Activation patching at label positions: what one run's activation does in another run.

Two runs of prompts that agree in every position: one is changed (base), the other gives activations (source). An
exact effect is one changed forward pass a cell (`interventions/variants.py`); a first-order one (attribution
patching: Nanda 2023; Syed et al. 2023) is

    m(base) + ⟨a(source) − a(base), ∂m/∂a at base⟩

from two forward passes and one backward for all cells together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import Head, HeadRef, Reference, check_reference
from icl_kernel_lens.errors import ModelError, PromptError, ResultError
from icl_kernel_lens.evidence.checkpoint import prompt_digest
from icl_kernel_lens.evidence.read import check_finite
from icl_kernel_lens.evidence.runner import run_prompts
from icl_kernel_lens.interventions.measure import logit_difference, measures
from icl_kernel_lens.interventions.routes import check_route
from icl_kernel_lens.interventions.variants import (
    STREAMS,
    Changes,
    HeadVector,
    Row,
    RowChange,
    Seen,
    editable,
    in_batches,
    keep,
    look_at,
    own_tokens,
    run_variants,
)
from icl_kernel_lens.models import probe
from icl_kernel_lens.models.fast import Prefix, read_prefix
from icl_kernel_lens.models.lens import InterceptableLens
from icl_kernel_lens.prompts import PromptSet
from icl_kernel_lens.results.patch_effects import Check, Parts, PatchEffects
from icl_kernel_lens.results.run_info import RunInfo

What = Literal[
    "residual",
    "attention_output",
    "mlp_output",
    "head_output",
    "query",
    "key",
    "value",
    "attention_edge",
]
"""residual: what a block reads. attention_output, mlp_output: what its attention and MLP add to the residual stream.
head_output (z), query, key, value: one head's vectors, the last two of a key-value head. attention_edge: what one
head reads at the answer position from the labels."""
EdgePart = Literal["both", "weights", "values"]
Direction = Literal["denoise", "noise"]
Method = Literal["exact", "attribution"]
Place = Literal["labels", "answer"]
Cell = tuple[int, int, int]
"""Layer, part, offset number."""
SAMPLE, LARGEST = 24, 8
"""Cells whose exact effect is computed beside first-order estimates: drawn at random; with the largest estimates."""
PART_OF: dict[str, Parts] = {
    **dict.fromkeys(STREAMS, "whole"),
    **dict.fromkeys(("head_output", "query", "attention_edge"), "head"),
    **dict.fromkeys(("key", "value"), "kv_head"),
}
_WORDS = {
    "residual": "the residual stream before a block",
    "attention_output": "what a layer's attention adds",
    "mlp_output": "what a layer's MLP adds",
    "head_output": "a head's output z",
    "query": "a head's query",
    "key": "a key-value head's key",
    "value": "a key-value head's value",
    "attention_edge": "what a head reads at the answer",
}


def patch_labels(
    model: Any,
    *,
    clean: PromptSet,
    corrupted: PromptSet,
    what: What = "attention_edge",
    offsets: Sequence[int] = (-1, 0, 1, 2, 3),
    heads: Sequence[Head] | None = None,
    method: Method = "exact",
    direction: Direction = "denoise",
    part: EdgePart = "both",
    at: Place = "labels",
    against: Reference = "model",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> PatchEffects:
    """The answer when an activation at the labels comes from another run, cell by cell.

        denoise   the corrupted run is changed, activations come from the clean one: what suffices
        noise     the clean run is changed, activations come from the corrupted one: what is needed

    `clean` and `corrupted` (see `corrupt`) agree in every position; a cell is one layer, one part (head, key-value
    head, or the layer as a whole) and one offset from the first label token, at all labels of a prompt together.
    `at="answer"` changes the answer position instead, for every `what` but `attention_edge`, which is about the
    answer position reading the labels, of one head alone:

        z' = z − Σ_p A_p v_p + Σ_p A*_p v*_p          p over label position + offset, * from the source run

    (`part="weights"`: A*_p v_p; `part="values"`: A_p v*_p), everything above recomputed; with everything above
    frozen it is `direct_effect`. `heads` leaves the other heads out. The metric is the label logit difference (see
    `Metric`) of the class that the clean run answers, or of the true one (`against="truth"`), on the clean prompts'
    label tokens. `method="attribution"` estimates every cell to first order, with the exact effect of a random
    sample of cells beside it (`.sample`, its correlation) and of the cells with the largest estimates (`.largest`).

    Does not show: that the changed activation is one the model would ever have (patched states are mixtures of two
    runs); nor which later part carries the effect.

    Raises: PromptError: positions differ, an offset leaves the prompt, prompts are scored on whole labels.
            ModelError: this model's attention cannot be changed exactly. RunError: see `read`.
    """
    lens, plan = _plan(model, clean, corrupted, what, offsets, heads, direction, part, at, against)
    if method not in get_args(Method):
        raise ResultError(f'method must be "exact" or "attribution"; got {method!r}.')
    if method == "exact":
        return plan.exact(lens, plan.cells, checkpoint=checkpoint, progress=progress)
    return _attribution(lens, plan, seed, checkpoint, progress=progress)


def direct_effect(
    model: Any,
    *,
    clean: PromptSet,
    corrupted: PromptSet,
    what: Literal["attention_edge", "head_output"] = "attention_edge",
    offsets: Sequence[int] = (0,),
    heads: Sequence[Head] | None = None,
    direction: Direction = "denoise",
    part: EdgePart = "both",
    against: Reference = "model",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> PatchEffects:
    """As `patch_labels` at the answer position, with every layer above frozen: the path straight to the answer.

    What the changed head adds to the residual stream goes, with what all other heads and MLPs added unchanged,
    through the final norm (recomputed) and the unembedding (Wang et al. 2023, path patching).
    Does not show: what later layers make of the change; they may undo it, or do all of its work.

    Raises: as `patch_labels`.
    """
    if what not in ("attention_edge", "head_output"):
        raise ResultError(f'a direct effect is of "attention_edge" or "head_output"; got {what!r}.')
    # What is added must reach the last residual as it is: no norm may stand behind the sum.
    check_route(editable(model), "attention_output")
    place: Place = "labels" if what == "attention_edge" else "answer"
    lens, plan = _plan(model, clean, corrupted, what, offsets, heads, direction, part, place, against)
    return plan.exact(lens, plan.cells, direct=True, checkpoint=checkpoint, progress=progress)


def _plan(
    model: Any,
    clean: PromptSet,
    corrupted: PromptSet,
    what: What,
    offsets: Sequence[int],
    heads: Sequence[Head] | None,
    direction: Direction,
    part: EdgePart,
    at: Place,
    against: Reference,
) -> tuple[InterceptableLens, _Plan]:
    for name, value, allowed in (
        ("what", what, get_args(What)),
        ("direction", direction, get_args(Direction)),
        ("part", part, get_args(EdgePart)),
        ("at", at, get_args(Place)),
    ):
        if value not in allowed:
            raise ResultError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")
    if what == "attention_edge" and at == "answer":
        raise ResultError(
            'attention_edge is about what the answer reads from the labels; leave out at="answer".'
        )
    lens = editable(model)
    check_alike(clean, corrupted)
    check_intervened(clean, against)
    if part != "both" and what != "attention_edge":
        raise ResultError(f"part splits an attention_edge; {what} has none. Leave part out.")
    if heads is not None and PART_OF[what] == "whole":
        raise ResultError(f"{what} belongs to a whole layer, not to heads. Leave heads out.")
    check_route(lens, what)
    base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    names = ("answer",) if at == "answer" else tuple(str(o) for o in offsets)
    positions = _positions(clean, offsets, at)
    cells = _cells(lens, PART_OF[what], heads, len(names))
    return lens, _Plan(
        clean, corrupted, base, source, what, direction, part, at, against, names, positions, tuple(cells)
    )


def check_alike(clean: PromptSet, corrupted: PromptSet) -> None:
    """Refuse two sets of prompts that do not agree in every position.

    Raises: PromptError: they do not, and where.
    """
    for prompts in (clean, corrupted):
        if not isinstance(prompts, PromptSet):
            raise PromptError(f"clean and corrupted must be PromptSets; got a {type(prompts).__name__}.")
    if len(clean) != len(corrupted) or clean.demos != corrupted.demos:
        raise PromptError(
            f"clean and corrupted prompts must correspond one to one; there are {len(clean)} of {clean.demos} "
            f"demonstrations and {len(corrupted)} of {corrupted.demos}. Make the one from the other with corrupt()."
        )
    for name in ("lengths", "answer_pos", "label_spans", "demo_spans"):
        differ = (getattr(clean, name) != getattr(corrupted, name)).flatten()
        if differ.any():
            prompt = int(differ.nonzero()[0]) // (differ.numel() // len(clean))
            raise PromptError(
                f"clean and corrupted prompts must agree in every position; {name} of prompt {prompt} is "
                f"{getattr(clean, name)[prompt].tolist()} and {getattr(corrupted, name)[prompt].tolist()}. "
                "corrupt() keeps positions, or refuses."
            )


def check_intervened(prompts: PromptSet, against: Reference) -> None:
    """Refuse prompts whose answer cannot be measured on one position.

    Raises: PromptError: whole labels are scored, there is one label, or no true label is known.
    """
    if not isinstance(prompts, PromptSet):
        raise PromptError(f"prompts must be a PromptSet; got a {type(prompts).__name__}.")
    check_reference(against)
    if prompts.score_on != "first_token":
        raise PromptError(
            "an intervention is measured on the first label token; these prompts are scored on whole labels. Draw "
            'them with score_on="first_token" and label words that differ in it.'
        )
    if prompts.labels < 2:
        raise PromptError("a logit difference needs two labels; these prompts have one.")
    if prompts.demos == 0:
        raise PromptError("there must be demonstrations to intervene on; these prompts have none.")
    if against == "truth" and prompts.test_labels is None:
        raise PromptError(
            'against="truth" needs true labels; these prompts have none. Compare against="model".'
        )


def _positions(prompts: PromptSet, offsets: Sequence[int], at: Place) -> Int[Tensor, "prompt offset demo"]:
    if at == "answer":
        return prompts.answer_pos[:, None, None]
    if not isinstance(offsets, Sequence) or not offsets or not all(isinstance(o, int) for o in offsets):
        raise PromptError(
            f"offsets must name whole numbers, such as (0,), the label itself; got {offsets!r}."
        )
    if len(set(offsets)) < len(offsets):
        raise PromptError(f"offsets must be named once; got {tuple(offsets)}.")
    positions = prompts.label_pos[:, None] + torch.tensor(list(offsets))[None, :, None]
    outside = (positions < 0) | (positions > prompts.answer_pos[:, None, None])
    if outside.any():
        prompt, which, demo = outside.nonzero()[0].tolist()
        raise PromptError(
            f"label position + offset must lie in the prompt; offset {offsets[which]} from the label of demonstration "
            f"{demo} in prompt {prompt} (position {int(prompts.label_pos[prompt, demo])}) does not: the answer "
            f"position is {int(prompts.answer_pos[prompt])}. Leave that offset out."
        )
    return positions


def _cells(lens: InterceptableLens, parts: Parts, heads: Sequence[Head] | None, offsets: int) -> list[Cell]:
    shape = lens.shape
    layers = [layer for layer in range(shape.layers) if layer not in probe(lens).missing]
    per_layer = {"whole": 1, "head": shape.heads, "kv_head": shape.kv_heads}[parts]
    wanted = None
    if heads is not None:
        check_heads(lens, heads)
        group = shape.heads // shape.kv_heads
        number = {"whole": lambda h: 0, "head": lambda h: h, "kv_head": lambda h: h // group}[parts]
        wanted = {(layer, number(head)) for layer, head in heads}
    return [
        (layer, part, offset)
        for layer in layers
        for part in range(per_layer)
        if wanted is None or (layer, part) in wanted
        for offset in range(offsets)
    ]


def is_head(entry: Any) -> bool:
    """Whether something is a (layer, head) pair of whole numbers."""
    if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) != 2:
        return False
    return all(isinstance(x, Integral) for x in entry)


def check_heads(lens: InterceptableLens, heads: Sequence[Head]) -> None:
    """Refuse heads that are not there.

    Raises: ResultError: none are named, or a layer or head is out of range or has no attention.
    """
    shape, missing = lens.shape, probe(lens).missing
    if not isinstance(heads, Sequence) or len(heads) == 0 or not all(is_head(entry) for entry in heads):
        raise ResultError(
            f"heads must name at least one, each as (layer, head), such as [(2, 1)]; None means all. Got {heads!r}."
        )
    for layer, head in heads:
        if not (0 <= layer < shape.layers and 0 <= head < shape.heads) or layer in missing:
            raise ResultError(
                f"a head must be one of the model's; {HeadRef(layer, head)} is not: {lens.name} has {shape.layers} "
                f"layers of {shape.heads} heads, counted from 0"
                + (f" ({missing[layer]})." if layer in missing else ".")
            )


@dataclass(frozen=True)
class _Plan:
    """What a sweep does to every prompt."""

    clean: PromptSet
    corrupted: PromptSet
    base: PromptSet
    source: PromptSet
    what: What
    direction: Direction
    part: EdgePart
    at: Place
    against: Reference
    offsets: tuple[str, ...]
    positions: Int[Tensor, "prompt offset demo"]
    cells: tuple[Cell, ...]

    @property
    def alone(self) -> bool:
        """Whether only the answer position is changed."""
        return self.what == "attention_edge" or self.at == "answer"

    def settings(self, **more: Any) -> dict[str, str]:
        words = {"what": self.what, "direction": self.direction, "at": self.at, "against": self.against}
        if self.what == "attention_edge":
            words["part"] = self.part
        return words | {"offsets": ", ".join(self.offsets)} | {k: str(v) for k, v in more.items()}

    def identity(self, cells: Sequence[Cell], **more: Any) -> dict[str, str]:
        return self.settings(source=prompt_digest(self.source), cells=tuple(cells), **more)

    def exact(
        self,
        lens: InterceptableLens,
        cells: Sequence[Cell],
        *,
        direct: bool = False,
        checkpoint: str | Path | None,
        progress: bool,
    ) -> PatchEffects:
        """Exact effects of some cells; NaN elsewhere."""
        kept = _Kept(lens, self.base)

        def step(numbers: list[int], shared: Prefix | None) -> dict[str, Tensor]:
            found = [self._one(lens, number, shared, kept, cells, direct) for number in numbers]
            return {name: torch.stack([f[name] for f in found]) for name in found[0]}

        results, how = run_prompts(
            self.base,
            lens,
            step,
            name="direct effects" if direct else "patching",
            settings=self.identity(cells, direct=direct),
            batch_size=1,
            checkpoint=checkpoint,
            progress=progress,
            share=self.alone,
        )
        return self.result(lens, cells, results, how, direct=direct)

    def _one(
        self,
        lens: InterceptableLens,
        number: int,
        shared: Prefix | None,
        kept: _Kept,
        cells: Sequence[Cell],
        direct: bool,
    ) -> dict[str, Tensor]:
        at = int(self.base.answer_pos[number])
        tokens, source = self.base.tokens[number], self.source.tokens[number]
        prefix = keep(lens, tokens, at, shared, kept.own) if self.alone else None
        seen = self.look(lens, number, kept.source(source, at, shared) if self.alone else None)
        positions = self.positions[number]
        start = prefix.end if prefix else 0
        # The first variant of all is unchanged.
        variants = [(-1, 0, 0), *cells]

        def run(part: Sequence[Cell]) -> Float[Tensor, "variant vocab"]:
            changes = self.changes(lens, part, positions, seen, start, at)
            once = partial(run_variants, lens, tokens, at, len(part), prefix=prefix)
            return _direct(lens, part, changes, once, at - start) if direct else once(changes)

        logits = list(in_batches(lens, variants, at + 1, start, run))
        base = logits[0][0]
        for logits_of in (base, seen.logits):
            check_finite(logits_of[None].cpu(), torch.tensor([number]), lens)
        words = self.clean.label_tokens[number]
        clean = (seen.logits if self.direction == "denoise" else base)[words.to(base.device)]
        if self.against == "truth":
            assert self.clean.test_labels is not None
            reference = int(self.clean.test_labels[number])
        else:
            reference = int(clean.argmax())
        parts = [measures(out, base, words, reference) for out in logits]
        found = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        source_scores = measures(seen.logits[None], base, words, reference)
        return (
            {name: values[1:] for name, values in found.items()}
            | {f"base_{name}": values[0] for name, values in found.items()}
            | {"source_scores": source_scores["label_scores"][0], "reference": torch.tensor(reference)}
        )

    def look(self, lens: InterceptableLens, number: int, prefix: Prefix | None) -> Seen:
        """What the source run has at this prompt's positions."""
        name = "value" if self.what == "attention_edge" else self.what
        at = int(self.source.answer_pos[number])
        return look_at(lens, self.source.tokens[number], at, self.positions[number].flatten(), [name], prefix)

    def changes(
        self,
        lens: InterceptableLens,
        cells: Sequence[Cell],
        positions: Int[Tensor, "offset demo"],
        seen: Seen,
        start: int,
        at: int,
    ) -> Changes:
        """One cell a variant; a cell of layer −1 changes nothing."""
        layer_of, part_of, offset_of = torch.tensor(cells).unbind(1)
        demos = positions.shape[1]
        entries = offset_of[:, None] * demos + torch.arange(demos)

        def here(layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Variants that change this layer, their positions, and where the source's vectors are."""
            which = (layer_of == layer).nonzero()[:, 0]
            places = positions[offset_of[which]] - start
            return which.to(x.device), places.to(x.device), entries[which].to(x.device)

        if self.what == "attention_edge":
            heads = torch.zeros(len(cells), lens.shape.layers, lens.shape.heads, dtype=torch.bool)
            there = layer_of >= 0
            heads[there.nonzero()[:, 0], layer_of[there], part_of[there]] = True
            return Changes(rows=self._edge(heads, positions, entries, offset_of, seen, at))
        if self.what in STREAMS:
            vectors = seen.vectors[self.what]

            def stream(layer: int, x: Tensor) -> Tensor:
                which, places, entry = here(layer, x)
                x = x.clone()
                x[which[:, None], places] = vectors[layer].to(x)[entry]
                return x

            return Changes(streams={self.what: stream})  # pyright: ignore[reportArgumentType]
        group = lens.shape.heads // lens.shape.kv_heads if self.what in ("key", "value") else 1
        vectors = seen.vectors[self.what]

        def vector(layer: int, x: Tensor) -> Tensor:
            which, places, entry = here(layer, x)
            heads = part_of.to(x.device)[which][:, None] * group + torch.arange(group, device=x.device)
            x = x.clone()
            index = which[:, None, None], heads[:, :, None], places[:, None]
            x[index] = vectors[layer].to(x)[heads[:, :, None], entry[:, None]]
            return x

        name: HeadVector = self.what  # pyright: ignore[reportAssignmentType]
        return Changes(vectors={name: vector})

    def _edge(
        self,
        heads: Tensor,
        positions: Int[Tensor, "offset demo"],
        entries: Int[Tensor, "variant demo"],
        offset_of: Int[Tensor, " variant"],
        seen: Seen,
        at: int,
    ) -> RowChange:
        def change(row: Row) -> Float[Tensor, "row key"]:
            places = positions.to(row.weights.device)[offset_of.to(row.weights.device)[row.variants]]
            new = torch.zeros_like(places, dtype=row.weights.dtype)
            if self.part == "weights":
                source = seen.weights[row.layer].to(row.weights)[row.heads]
                new = source.gather(1, places)
            return row.weights.scatter(1, places, new)

        def added(row: Row) -> Float[Tensor, "row d_head"]:
            device = row.weights.device
            places = positions.to(device)[offset_of.to(device)[row.variants]]
            weights = row.weights
            if self.part == "both":
                weights = seen.weights[row.layer].to(row.weights)[row.heads]
            entry = entries.to(device)[row.variants]
            values = seen.vectors["value"][row.layer].to(row.weights)[row.heads[:, None], entry]
            return einsum(weights.gather(1, places), values, "row demo, row demo d -> row d")

        answer = torch.full((len(heads), 1), at)
        return RowChange(heads, answer, change, None if self.part == "weights" else added)

    def result(
        self,
        lens: InterceptableLens,
        cells: Sequence[Cell],
        results: dict[str, Tensor],
        how: str,
        *,
        direct: bool = False,
    ) -> PatchEffects:
        """Rows of cells in their places."""
        scores, reference = results["label_scores"], results["reference"]
        place = partial(in_place, lens, PART_OF[self.what], cells, len(self.offsets))
        runs = ("clean", "corrupted") if self.direction == "denoise" else ("corrupted", "clean")
        title = f"{_WORDS[self.what]}: {runs[0]} in the {runs[1]} run"
        title += ", layers above frozen" if direct else ""
        return PatchEffects(
            what=f"direct_effect of {self.what}" if direct else self.what,
            title=title,
            parts=PART_OF[self.what],
            offsets=self.offsets,
            values=place(logit_difference(scores, reference[:, None])),
            base=logit_difference(results["base_label_scores"], reference),
            source=logit_difference(results["source_scores"], reference),
            reference=reference,
            label_scores=place(scores),
            base_label_scores=results["base_label_scores"],
            others={name: place(results[name]) for name in ("probability", "kl")},
            base_others={name: results[f"base_{name}"] for name in ("probability", "kl")},
            controls={},
            demo_set=self.base.demo_set,
            run=run_info(lens, self.base, how),
            settings=self.settings(
                method="exact", corruption=self.corrupted.info.corruption, route=check_route(lens, self.what)
            ),
        )


def run_info(lens: InterceptableLens, prompts: PromptSet, how: str) -> RunInfo:
    """Where effects came from; `how` says what was shared."""
    return RunInfo.of(lens, prompts.info, prompts.score_on, reading=how)


def in_place(
    lens: InterceptableLens,
    parts: Parts,
    cells: Sequence[Cell],
    offsets: int,
    rows: Float[Tensor, "prompt cell *_"],
) -> Float[Tensor, "prompt layer part offset *_"]:
    """Cells in their places among all layers and parts, NaN elsewhere."""
    per_layer = {"whole": 1, "head": lens.shape.heads, "kv_head": lens.shape.kv_heads}[parts]
    shape = (len(rows), lens.shape.layers, per_layer, offsets, *rows.shape[2:])
    placed = torch.full(shape, float("nan"), dtype=rows.dtype)
    layer, part, offset = torch.tensor(list(cells)).unbind(1)
    placed[:, layer, part, offset] = rows
    return placed


class _Kept:
    """The source prompts' shared beginning, run once for all prompts that have it."""

    def __init__(self, lens: InterceptableLens, prompts: PromptSet) -> None:
        self.lens = lens
        self.own = own_tokens(lens, int(prompts.lengths.max()))
        self.tokens: Tensor | None = None
        self.prefix: Prefix | None = None

    def source(self, tokens: Int[Tensor, " pos"], at: int, shared: Prefix | None) -> Prefix | None:
        """Keys and values of a source prompt up to its answer."""
        if shared is None:
            return keep(self.lens, tokens, at, None, self.own)
        beginning = tokens[: shared.end]
        if self.tokens is None or not torch.equal(self.tokens, beginning):
            self.prefix = None  # before the next one is made
            self.tokens, self.prefix = beginning, read_prefix(self.lens, beginning)
        return keep(self.lens, tokens, at, self.prefix, self.own)


def _direct(
    lens: InterceptableLens,
    cells: Sequence[Cell],
    changes: Changes,
    run: Callable[..., Float[Tensor, "variant vocab"]],
    own: int,
) -> Float[Tensor, "variant vocab"]:
    """Logits with each variant's change of its layer's attention output added to the unchanged final residual."""
    layers = torch.tensor([layer for layer, _, _ in cells])
    added: dict[int, Tensor] = {}
    top = lens.shape.layers - 1

    def see(layer: int, x: Tensor) -> Tensor:
        which = (layers == layer).nonzero()[:, 0].to(x.device)
        added[layer] = x[which, own]
        return x

    run(Changes(changes.vectors, {**changes.streams, "attention_output": see}, changes.rows))
    plain: dict[int, Tensor] = {}

    def watch(layer: int, x: Tensor) -> Tensor:
        plain[layer] = x[:, own]
        return x

    run(Changes(streams={"attention_output": watch}))

    def final(x: Tensor) -> Tensor:
        x = x.clone()
        for layer in added:
            which = (layers == layer).nonzero()[:, 0].to(x.device)
            if len(which):
                x[which, own] += (added[layer] - plain[layer][which.to(plain[layer].device)]).to(x)
        return x

    with lens.editing({(top, "hook_resid_post"): final}):
        return run(Changes())


def _attribution(
    lens: InterceptableLens,
    plan: _Plan,
    seed: int,
    checkpoint: str | Path | None,
    *,
    progress: bool,
) -> PatchEffects:
    """First-order estimates of every cell, and exact effects of some."""
    kept = _Kept(lens, plan.base)

    if any(p.is_inference() for p in getattr(lens.model, "parameters", list)()):
        raise ModelError(
            f"gradients need ordinary weights; those of {lens.name} were made under torch.inference_mode. Load it "
            'outside, or use method="exact".'
        )

    def step(numbers: list[int], shared: Prefix | None) -> dict[str, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            found = [_estimates(lens, plan, number, shared, kept) for number in numbers]
        return {name: torch.stack([f[name] for f in found]) for name in found[0]}

    folder = Path(checkpoint) if checkpoint is not None else None
    results, how = run_prompts(
        plan.base,
        lens,
        step,
        name="attribution patching",
        settings=plan.identity(plan.cells, method="attribution"),
        checkpoint=folder / "estimates" if folder else None,
        share=plan.alone,
        batch_size=1,
        progress=progress,
    )
    estimates = results["estimate"]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(plan.cells), generator=generator)[:SAMPLE].sort().values
    most = estimates.mean(0).abs().topk(min(LARGEST, len(plan.cells))).indices
    both = torch.cat([drawn, most]).unique()
    cells = [plan.cells[i] for i in both.tolist()]
    exact = plan.exact(lens, cells, checkpoint=folder / "exact" if folder else None, progress=progress)
    effect = exact.effect()

    def check(which: Tensor) -> Check:
        at = tuple(plan.cells[i] for i in which.tolist())
        return Check(at, estimates[:, which], torch.stack([effect[:, a, b, c] for a, b, c in at], 1))

    place = partial(in_place, lens, PART_OF[plan.what], plan.cells, len(plan.offsets))
    base = logit_difference(results["base_label_scores"], results["reference"])
    return PatchEffects(
        what=plan.what,
        title=f"{exact.title}, to first order",
        parts=PART_OF[plan.what],
        offsets=plan.offsets,
        values=place(base[:, None] + estimates),
        base=base,
        source=logit_difference(results["source_scores"], results["reference"]),
        reference=results["reference"],
        label_scores=None,
        base_label_scores=results["base_label_scores"],
        others={},
        base_others={},
        controls={},
        demo_set=plan.base.demo_set,
        run=run_info(lens, plan.base, how),
        settings=plan.settings(method="attribution", seed=seed, corruption=plan.corrupted.info.corruption),
        sample=check(drawn),
        largest=check(most),
    )


def _estimates(
    lens: InterceptableLens, plan: _Plan, number: int, shared: Prefix | None, kept: _Kept
) -> dict[str, Tensor]:
    """⟨a(source) − a(base), ∂m/∂a⟩ of every cell of one prompt."""
    at = int(plan.base.answer_pos[number])
    tokens, source = plan.base.tokens[number], plan.source.tokens[number]
    prefix = keep(lens, tokens, at, shared, kept.own) if plan.alone else None
    seen = plan.look(lens, number, kept.source(source, at, shared) if plan.alone else None)
    start = prefix.end if prefix else 0
    edge = plan.what == "attention_edge"
    places = torch.tensor([at]) if edge else plan.positions[number].flatten()
    zeros: dict[int, Tensor] = {}
    here: dict[int, Tensor] = {}
    moved: dict[int, Tensor] = {}

    def probe_vector(layer: int, x: Tensor) -> Tensor:
        """Zeros added at the positions, whose gradient is the activation's."""
        index = (places - start).to(x.device)
        here[layer] = x[0][..., index, :].detach().float()
        zero = torch.zeros_like(x[0][..., index, :], requires_grad=True)
        zeros[layer] = zero
        spread = torch.zeros_like(x[0]).index_add(-2, index, zero)
        return x + spread

    def edges(row: Row) -> Float[Tensor, "row key"]:
        """What each offset's edge would change in z; the rows themselves stay."""
        flat = plan.positions[number].flatten().to(row.weights.device)
        old = einsum(row.weights[:, flat], own_values[row.layer], "head at, head at d -> head at d")
        weights = seen.weights[row.layer].to(row.weights)[:, flat]
        values = seen.vectors["value"][row.layer].to(row.weights)
        new = {
            "both": (weights, values),
            "weights": (weights, own_values[row.layer]),
            "values": (row.weights[:, flat], values),
        }[plan.part]
        moved[row.layer] = (einsum(*new, "head at, head at d -> head at d") - old).detach()
        return row.weights

    if edge:
        own = look_at(lens, tokens, at, plan.positions[number].flatten(), ["value"], prefix)
        own_values = own.vectors["value"].float()
        heads = torch.ones(1, lens.shape.layers, lens.shape.heads, dtype=torch.bool)
        rows = RowChange(heads, torch.tensor([[at]]), edges)
        changes = Changes(vectors={"head_output": probe_vector}, rows=rows)
    elif plan.what in STREAMS:
        changes = Changes(streams={plan.what: probe_vector})  # pyright: ignore[reportArgumentType]
    else:
        changes = Changes(vectors={plan.what: probe_vector})  # pyright: ignore[reportArgumentType]
    logits = run_variants(lens, tokens, at, 1, changes, prefix, gradients=True)[0]
    for logits_of in (logits.detach(), seen.logits):
        check_finite(logits_of[None].cpu(), torch.tensor([number]), lens)
    words = plan.clean.label_tokens[number].to(logits.device)
    scores, source_scores = logits[words], seen.logits[words]
    clean = source_scores if plan.direction == "denoise" else scores
    reference = int(clean.argmax())
    if plan.against == "truth":
        assert plan.clean.test_labels is not None
        reference = int(plan.clean.test_labels[number])
    metric = logit_difference(scores, torch.tensor(reference, device=scores.device))
    gradients = torch.autograd.grad(metric, list(zeros.values()), allow_unused=True)
    group = lens.shape.heads // lens.shape.kv_heads if plan.what in ("key", "value") else 1
    offsets, per_layer = len(plan.offsets), {}
    for layer, gradient in zip(zeros, gradients, strict=True):
        if gradient is None:
            gradient = torch.zeros_like(zeros[layer])
        gradient = gradient.float()
        if edge:
            per = einsum(moved[layer], gradient[:, 0], "head at d, head d -> head at")
        else:
            difference = seen.vectors[plan.what][layer].to(gradient) - here[layer]
            per = (difference * gradient).sum(-1)
        per = per.reshape(*per.shape[:-1], offsets, -1).sum(-1)
        per = per[None] if per.dim() == 1 else per.unflatten(0, (-1, group)).sum(1)
        per_layer[layer] = per.cpu()
    estimate = torch.stack([per_layer[layer][part, offset] for layer, part, offset in plan.cells])
    return {
        "estimate": estimate,
        "base_label_scores": scores.detach().cpu(),
        "source_scores": source_scores.detach().cpu(),
        "reference": torch.tensor(reference),
    }
