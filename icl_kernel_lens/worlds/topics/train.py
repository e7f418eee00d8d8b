"""The bundled mini model, and its training on the topics world until it learns in context.

A small Llama with a tokenizer of whole words, in Hugging Face format. Every document holds 17 examples, and the loss is the cross-entropy of every label word given all that stands before
it, so one run trains for 0 to 16 demonstrations at once, plus the ordinary next-word loss. Where the accuracy leaves
chance, in-context learning has emerged; the curve is kept in the record.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.tasks.topics import Document, LabelWords, Split, vocabulary
from icl_kernel_lens.worlds.training import Training, train

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

RECORD_FILE = "training.json"


@dataclass(frozen=True, kw_only=True)
class MiniTraining(Training):
    """The sizes and the training of the bundled model, which the defaults made."""

    steps: int = 3500
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup: int = 100
    layers: int = 3
    heads: int = 4
    width: int = 64
    mlp_width: int = 128
    context: int = 256
    text_weight: float = 1.0
    """Weight of the next-word loss over all words beside the loss on the labels. Without it the labels
    are not learned in this many steps: predicting a topic's words is what groups them."""
    examples: int = 17
    classes: tuple[int, ...] = (2, 3, 4)
    """Topics per document, drawn evenly. With two alone, the model learns to compare the test input with
    the last demonstration only; with more, it has to weigh all of them."""


def mini_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer in Hugging Face format; it puts `<bos>` first by default."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", pad_token="<pad>", unk_token="<unk>"
    )


def mini_model(settings: MiniTraining) -> LlamaForCausalLM:
    """An untrained model of these sizes; the caller's random state is left as it was."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=settings.width,
        intermediate_size=settings.mlp_width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def batch_of_documents(
    rng: random.Random,
    split: Split,
    words: LabelWords,
    count: int,
    examples: int,
    classes: tuple[int, ...] = (2,),
) -> tuple[Int[Tensor, "document pos"], Int[Tensor, "document example"]]:
    """Token ids of `count` documents, right-padded, and the position of every label word."""
    ids = {word: i for i, word in enumerate(vocabulary())}
    rows, label_pos = [], []
    for _ in range(count):
        document = Document.draw(rng, split, words, rng.choice(classes))
        row, where = [ids["<bos>"]], []
        for _ in range(examples):
            label = rng.randrange(len(document.topics))
            row += [ids[word] for word in document.example(rng, label).texts[0].split()]
            row += [ids["is"], ids[document.label_words[label]], ids["."]]
            where.append(len(row) - 2)
        rows.append(torch.tensor(row))
        label_pos.append(where)
    return pad_sequence(rows, batch_first=True, padding_value=ids["<pad>"]), torch.tensor(label_pos)


def label_accuracy(
    model: LlamaForCausalLM,
    tokens: Int[Tensor, "document pos"],
    label_pos: Int[Tensor, "document example"],
) -> Float[Tensor, " example"]:
    """How often the right one of the document's two label words scores higher, by example number.

    Chance is 0.5. A document whose examples all carry one label is scored against that label alone and
    would count as right; such documents (2^-16 of them) are kept.
    """
    with torch.no_grad():
        logits = model(tokens).logits
    rows = torch.arange(len(tokens))[:, None]
    answers = tokens[rows, label_pos]
    scores = logits[rows, label_pos - 1]
    rivals = torch.where(
        answers == answers.amin(1, keepdim=True), answers.amax(1, keepdim=True), answers.amin(1, keepdim=True)
    )
    own, other = (scores.gather(-1, labels[..., None])[..., 0] for labels in (answers, rivals))
    return (own >= other).float().mean(0)


def train_mini(out: Path, settings: MiniTraining | None = None, *, progress: bool = True) -> dict[str, Any]:
    """Train the mini model, save weights, tokenizer and record in `out`, and return the record.

    The folder loads with `load_model(out)` and with `AutoModelForCausalLM.from_pretrained(out)`.

    Raises: LoadError: `out` holds something else than an earlier training.
    """
    settings = settings or MiniTraining()
    out = Path(out)
    if out.exists() and any(out.iterdir()) and not (out / RECORD_FILE).exists():
        raise LoadError(
            f"the output folder must be empty or hold an earlier training; {out} holds something else. "
            "Choose another folder.",
            code="folder-foreign",
        )
    model = mini_model(settings)
    rng = random.Random(f"train/{settings.seed}")
    held_out = batch_of_documents(
        random.Random(f"measure/{settings.seed}"), "heldout", "seen", 256, settings.examples
    )

    def losses() -> tuple[Tensor, Tensor]:
        tokens, label_pos = batch_of_documents(
            rng, "train", "seen", settings.batch_size, settings.examples, settings.classes
        )
        rows = torch.arange(len(tokens))[:, None]
        logits = model(tokens).logits
        labels = cross_entropy(logits[rows, label_pos - 1].flatten(0, 1), tokens[rows, label_pos].flatten())
        words = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0)
        return labels + settings.text_weight * words, labels

    def measure() -> dict[str, float]:
        right = label_accuracy(model, *held_out)
        return {f"accuracy_{k}": right[k].item() for k in (0, 1, 2, 4, 8, 16) if k < settings.examples}

    record = train(model, settings, losses, measure, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(out, safe_serialization=True)
    mini_tokenizer().save_pretrained(out)
    (out / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")
    return record
