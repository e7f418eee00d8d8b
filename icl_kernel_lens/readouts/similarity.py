"""Correlates a head's attention with how alike the model would continue the texts on their own.

Han et al. (TMLR 2025), eq. 9 and section 5.3: the similarity that their theory gives the kernel,

    sim_i = P(o | x_test)ᵀ P(o | x_i)

with P(o | x) the model's distribution over the next token after the text x alone, without a template and without
other texts; and per head its Pearson correlation with the attention on the demonstrations.
"""

from __future__ import annotations

import hashlib
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Pooling
from icl_kernel_lens.errors import PromptError, ResultError
from icl_kernel_lens.evidence.reading import check_reading
from icl_kernel_lens.models.adapter import ModelAdapter, as_adapter
from icl_kernel_lens.models.attention_passes import Prefix
from icl_kernel_lens.models.verify import verify_model
from icl_kernel_lens.numbers.control_votes import SHUFFLES
from icl_kernel_lens.numbers.permutations import shuffled_mean
from icl_kernel_lens.prompts.example import Example
from icl_kernel_lens.prompts.promptset import PromptInfo, PromptSet, TokenRole
from icl_kernel_lens.prompts.tokenizer import check_tokenizer, encode
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.run.forward import answer_logits, check_finite
from icl_kernel_lens.run.runner import BatchSize, run_prompts
from icl_kernel_lens.scores.common import reasons_for, shown_demos
from icl_kernel_lens.scores.in_context import accuracy_of

SAME = 1e-6
"""Numbers closer than this, relative to the largest, are the same up to rounding: they correlate with nothing."""

Text = tuple[int, ...]
"""The tokens of a text on its own."""


@checked
def prediction_similarity(
    model: Any,
    prompts: PromptSet,
    evidence: Evidence,
    *,
    pooling: Pooling = "label",
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> HeadScores:
    """Does a head attend to demonstrations whose texts the model would continue like the test input?

        score_h = corr_i(a_i, sim_i),    sim_i = P(o | x_test)ᵀ P(o | x_i)        Han et al. (TMLR 2025), eq. 9

    Pearson's correlation over the demonstrations of a prompt, where a_i is the attention from the answer position
    (`pooling="span_max"`: as in the paper), and P the distribution over the whole vocabulary after the text
    alone, with a beginning-of-sequence token if the prompts have one. `evidence` is what `read` gave for these
    prompts and this model. Each distinct text is run once; test inputs' distributions are kept in memory
    (texts × vocabulary × 4 bytes). The paper does not say whether it pools pairs over prompts; here each
    prompt has its value, so that prompts that differ in the size of sim do not count as correlation.

    Texts come from what the prompts were made of (several fields with what the template has between them). Of
    prompts without that (ready-made ids, read from a file), the tokens of each text are taken as they stand in the
    prompt, without the label; with ready-made ids, with whatever stands before the label and behind the one before.

    Reads as: 1 attention orders the demonstrations as sim does; 0 no linear relation. `shuffled_similarity` is the
    mean over 32 permutations of sim within the prompt, whose spread shows what chance gives few demonstrations.
    Does not show: that the head computes this similarity; texts that are continued alike are alike in much else.

    Raises: ResultError: evidence of other prompts; fewer than three demonstrations.
            EvidenceMissing: `evidence` was read without this pooling.
            PromptError: a text without tokens.
    Example:
        >>> from icl_kernel_lens import load_model, load_task, read
        >>> model = load_model("mini", device="cpu")
        >>> prompts = load_task("topics").prompts(model, demos=4, count=2, seed=0)
        >>> evidence = read(model, prompts, progress=False)
        >>> prediction_similarity(model, prompts, evidence, progress=False).values.shape
        torch.Size([2, 3, 4])
    """
    adapter = as_adapter(model)
    weights = evidence.pooled(pooling)
    check_reading(evidence, model, prompts)
    if prompts.demos < 3:
        raise ResultError(
            f"a correlation needs at least three demonstrations; these prompts have {prompts.demos}.",
            code="too-few-demonstrations",
        )
    similar = similarities(
        adapter,
        prompts,
        texts_alone(adapter, prompts),
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    )
    values, seed = pearson(weights, similar), prompts.info.seed or 0
    control = shuffled_mean(lambda other: pearson(weights, other), similar, shuffles=SHUFFLES, seed=seed)
    return HeadScores(
        name="prediction_similarity",
        title="correlation of attention with the similarity of the model's own predictions",
        unit="Pearson correlation",
        values=values,
        controls={"shuffled_similarity": control},
        companions={},
        reasons=_reasons(evidence, weights, similar),
        demo_set=prompts.demo_set,
        run=evidence.run,
        settings={"pooling": pooling},
        shown=shown_demos(evidence, weights, evidence.answers),
        accuracy=accuracy_of(evidence),
    )


def _reasons(
    evidence: Evidence,
    weights: Float[Tensor, "prompt layer head demo"],
    similar: Float[Tensor, "prompt demo"],
) -> dict[Reason, int]:
    """Why cells have no correlation, counted over (prompt, head)."""
    same = _constant(similar)[:, None, None].expand(weights.shape[:3]) & ~weights.isnan().any(-1)
    flat = _constant(weights) & (weights.sum(-1) > 0) & ~same
    found = {
        Reason.SIMILARITIES_ALIKE: same,
        Reason.ATTENTION_ALIKE: flat,
        Reason.NO_ATTENTION: (weights.sum(-1) <= 0) & ~same,
    }
    counts = reasons_for(evidence, weights) | {why: int(cells.sum()) for why, cells in found.items()}
    return {why: count for why, count in counts.items() if count}


def pearson(
    weights: Float[Tensor, "prompt layer head demo"], similar: Float[Tensor, "prompt demo"]
) -> Float[Tensor, "prompt layer head"]:
    """Pearson's correlation over the last axis; NaN where one of the two is constant up to rounding."""
    x, y = weights.double(), similar.double()[:, None, None]
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    size = (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    flat = _constant(weights) | _constant(similar)[:, None, None]
    return ((x * y).sum(-1) / size).masked_fill(flat, float("nan")).to(weights.dtype)


def _constant(numbers: Tensor) -> Tensor:
    """Whether all numbers on the last axis are the same up to rounding."""
    return numbers.amax(-1) - numbers.amin(-1) <= SAME * numbers.abs().amax(-1)


Pieces = tuple[tuple[str, bool], ...]
"""A text's pieces, and of each whether it is the template's."""


def _written(prompts: PromptSet) -> list[list[Pieces]] | None:
    """Each prompt's test input and then its demonstrations, as text; None where prompts were not made from any."""
    template = prompts.info.template
    if prompts.episodes is None or template is None:
        return None

    def written(example: Example) -> Pieces:
        # Between its fields, as in the template; not what stands before and behind.
        pieces = template.pieces(example.texts, None)
        fields = [at for at, (role, _) in enumerate(pieces) if role != "template"]
        inner = pieces[fields[0] : fields[-1] + 1] if fields else []
        return tuple((string, role == "template") for role, string in inner)

    return [[written(example) for example in (e.test, *e.demos)] for e in prompts.episodes]


def strings_alone(prompts: PromptSet) -> list[list[str]] | None:
    """Each prompt's test input and then its demonstrations, as strings; None where prompts were not made from text."""
    if (rows := _written(prompts)) is None:
        return None
    return [["".join(string for string, _ in text) for text in row] for row in rows]


def texts_alone(adapter: ModelAdapter, prompts: PromptSet) -> list[list[Text]]:
    """Each prompt's test input and then its demonstrations, every one as the tokens it has alone.

    Raises: PromptError: a text without tokens.
    """
    if (rows := _written(prompts)) is None:
        return _cut_out(prompts)
    distinct = list(dict.fromkeys(chain(*rows)))
    encoded = encode(check_tokenizer(adapter), [list(text) for text in distinct], prompts.info.bos_asked)
    ids: dict[Pieces, Text] = {}
    for text, (tokens, offsets) in zip(distinct, encoded, strict=True):
        if all(span is None for span in offsets):
            raise PromptError(
                f"every text must have a token to be run alone; {''.join(s for s, _ in text)!r} has none.",
                code="empty-text",
            )
        ids[text] = tuple(tokens)
    return [[ids[text] for text in row] for row in rows]


def _cut_out(prompts: PromptSet) -> list[list[Text]]:
    """The tokens that the texts have in their prompts, from the first that is text to the last."""
    names = ["the test input", *(f"demonstration {i}" for i in range(prompts.demos))]
    starts = torch.cat([prompts.demo_spans[:, -1:, 1], prompts.demo_spans[..., 0]], 1).tolist()
    ends = torch.cat([prompts.answer_pos[:, None] + 1, prompts.label_pos], 1).tolist()
    found: list[list[Text]] = [[] for _ in starts]
    for number, (tokens, roles) in enumerate(
        zip(prompts.tokens.tolist(), prompts.roles.tolist(), strict=True)
    ):
        bos = tokens[:1] if prompts.info.prepend_bos else []
        for what, start, end in zip(names, starts[number], ends[number], strict=True):
            text = [at for at in range(start, end) if roles[at] in (TokenRole.TEXT, TokenRole.TEXT2)]
            if not text:
                raise PromptError(
                    f"every text must have a token to be run alone; {what} of prompt {number} has none.",
                    code="empty-text",
                )
            found[number].append((*bos, *tokens[text[0] : text[-1] + 1]))
    return found


def similarities(
    adapter: ModelAdapter,
    prompts: PromptSet,
    rows: list[list[Text]],
    *,
    batch_size: BatchSize,
    checkpoint: str | Path | None,
    progress: bool,
) -> Float[Tensor, "prompt demo"]:
    """sim_i; of demonstrations only the products with the test inputs are kept, not their distributions."""
    verify_model(adapter)
    first = list(dict.fromkeys(row[0] for row in rows))
    rest = [text for text in dict.fromkeys(chain(*rows)) if text not in set(first)]
    key = hashlib.sha256(repr((first, rest)).encode()).hexdigest()

    def run(texts: list[Text], name: str, of: Any) -> Tensor:
        alone = _alone(texts, prompts.info)

        def step(numbers: list[int], prefix: Prefix | None) -> dict[str, Tensor]:
            assert prefix is None, "texts are run whole"
            logits = answer_logits(adapter, alone.select(numbers), fast=False)
            check_finite(logits, torch.tensor(numbers), adapter)
            return {"rows": of(logits.softmax(-1)).cpu()}

        results, _ = run_prompts(
            alone,
            adapter,
            step,
            name=f"reading {name} alone",
            settings={"texts": key},
            batch_size=batch_size,
            checkpoint=None if checkpoint is None else Path(checkpoint) / name.replace(" ", "_"),
            progress=progress,
            share=False,
        )
        return results["rows"]

    predicted = run(first, "test inputs", lambda p: p)
    products = predicted @ predicted.T
    if rest:
        products = torch.cat([products, run(rest, "demonstrations", lambda p: p @ predicted.to(p.device).T)])
    at = {text: number for number, text in enumerate((*first, *rest))}
    return torch.stack([products[[at[text] for text in texts], at[test]] for test, *texts in rows])


def _alone(texts: list[Text], info: PromptInfo) -> PromptSet:
    """Texts as prompts without demonstrations; nothing is asked about labels, so any two tokens stand for them."""
    count, lengths = len(texts), torch.tensor([len(text) for text in texts])
    tokens = pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    there = torch.arange(tokens.shape[1]) < lengths[:, None]
    spans = torch.zeros(count, 0, 2, dtype=torch.long)
    return PromptSet(
        tokens=tokens,
        lengths=lengths,
        roles=torch.where(there, int(TokenRole.TEXT), int(TokenRole.PADDING)),
        answer_pos=lengths - 1,
        demo_spans=spans,
        label_spans=spans,
        demo_labels=torch.zeros(count, 0, dtype=torch.long),
        label_sequences=torch.tensor([[[0], [1]]]).repeat(count, 1, 1),
        label_lengths=torch.ones(count, 2, dtype=torch.long),
        demo_set=torch.arange(count),
        label_words=(("", ""),) * count,
        info=PromptInfo(task=info.task, origin="texts alone", tokenizer=info.tokenizer),
    )
