"""Train the bundled mini model: a small Llama on the topics world, until it learns in context.

One readable loop. Every document holds 17 examples, and the loss is the cross-entropy of every label
word given all that stands before it, so one run trains for 0 to 16 demonstrations at once, plus the
ordinary next-word loss. Where the accuracy leaves chance, in-context learning has emerged; the curve is
kept in the record.

The same seed and number of threads give the same weights on the same machine and library versions.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.worlds.topics import Document, LabelWords, Split, vocabulary

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

RECORD_FILE = "training.json"
IGNORED = -100
"""Target of positions that carry no loss (PyTorch's own default)."""


@dataclass(frozen=True)
class TrainingPlan:
    """What `train_mini` does; the defaults made the bundled model."""

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
    steps: int = 3500
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.01
    measure_every: int = 100
    threads: int = 1
    seed: int = 0


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


def mini_model(plan: TrainingPlan) -> LlamaForCausalLM:
    """An untrained model of the plan's size; the caller's random state is left as it was."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=plan.width,
        intermediate_size=plan.mlp_width,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads,
        max_position_embeddings=plan.context,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
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
    rows: list[list[int]] = []
    label_pos: list[list[int]] = []
    for _ in range(count):
        document = Document.draw(rng, split, words, rng.choice(classes))
        row, where = [ids["<bos>"]], []
        for _ in range(examples):
            label = rng.randrange(len(document.topics))
            row += [ids[word] for word in document.example(rng, label).texts[0].split()]
            row += [ids["is"], ids[document.label_words[label]], ids["."]]
            where.append(len(row) - 2)
        rows.append(row)
        label_pos.append(where)
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [ids["<pad>"]] * (longest - len(row)) for row in rows])
    return tokens, torch.tensor(label_pos)


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
    right = scores.gather(-1, answers[..., None]) >= scores.gather(-1, rivals[..., None])
    return right.squeeze(-1).float().mean(0)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_mini(out: Path, plan: TrainingPlan | None = None, *, progress: bool = True) -> dict:
    """Train the mini model, save weights, tokenizer and record in `out`, and return the record.

    The folder loads with `load_model(out)` and with `AutoModelForCausalLM.from_pretrained(out)`.
    """
    plan = plan or TrainingPlan()
    out = Path(out)
    if out.exists() and any(out.iterdir()) and not (out / RECORD_FILE).exists():
        raise LoadError(
            f"the output folder must be empty or hold an earlier training; {out} holds something else. "
            "Choose another folder."
        )
    model = mini_model(plan)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / plan.warmup, max(0.0, 1 - step / plan.steps) ** 0.5),
    )
    rng = random.Random(f"train/{plan.seed}")
    measured = batch_of_documents(
        random.Random(f"measure/{plan.seed}"), "heldout", "seen", 256, plan.examples
    )
    curve: list[dict[str, float]] = []
    started = time.perf_counter()
    with _threads(plan.threads), tqdm(total=plan.steps, disable=not progress, unit="step") as bar:
        for step in range(plan.steps):
            tokens, label_pos = batch_of_documents(
                rng, "train", "seen", plan.batch_size, plan.examples, plan.classes
            )
            rows = torch.arange(len(tokens))[:, None]
            logits = model(tokens).logits
            loss = torch.nn.functional.cross_entropy(
                logits[rows, label_pos - 1].flatten(0, 1), tokens[rows, label_pos].flatten()
            )
            every = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0
            )
            (loss + plan.text_weight * every).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if (step + 1) % plan.measure_every == 0 or step == 0:
                right = label_accuracy(model, *measured)
                curve.append(
                    {"step": step + 1, "loss": loss.item()}
                    | {f"accuracy_{k}": right[k].item() for k in (0, 1, 2, 4, 8, 16) if k < plan.examples}
                )
                bar.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{right[-1]:.3f}")
            bar.update()
    record = {
        "plan": asdict(plan),
        "seconds": round(time.perf_counter() - started, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "curve": curve,
    }
    out.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(out, safe_serialization=True)
    mini_tokenizer().save_pretrained(out)
    (out / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")
    return record
