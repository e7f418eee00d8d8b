"""Random tokenizers, templates, texts and label words: is every token and every position what it should be?

python -m benchmarks.tokens [--cases 10000] [--seed 0]

Each case is drawn whole (markers and accents in texts, markers in templates, chat templates of one and of many turns,
label words that merge, are unknown or begin another), and either refused with a reason that can be seen in Hugging Face's
tokens, or compared with them: the ids, the positions of every label, the label tokens as the answer.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from icl_kernel_lens import Template
from icl_kernel_lens.errors import LensError
from icl_kernel_lens.models.adapter import ModelShape
from icl_kernel_lens.prompts.build import build_prompts
from icl_kernel_lens.prompts.example import Episode, Example
from icl_kernel_lens.prompts.promptset import PromptInfo, PromptSet

WORDS = (
    "positive", "negative", "very good", "very bad", "very", " yes", "no", "maybe", "0", "42", "9", "好", "☃", "(good",
    "é", "e", "<|im_end|>", "[/INST]", "</s>", "world.", "sports,", "🎬", "x", "\u00e9lan", "ment", "it's", "__",
)  # fmt: skip
BITS = (
    "a gripping film", "dull", "lifeless", "!", " ", "  ", "é", "好", "🎬", "0123", "(not)", '"good"', "<|im_start|>",
    "<|im_end|>", "[INST]", "[/INST]", "</s>", "<s>", "<|end|>", "<bos>", "<|endoftext|>", "<think>", "x" * 30, "☃",
    "\u0301", "positive", "Sentiment:", "it's", "\U0010fffd",
)  # fmt: skip
SHAPES = (
    "Input: {text}\nOutput: {label}", "{text} => {label}", "{text}({label})", "{text}\nSenti{label}", "Q: {text}\nA:{label}",
    "{text}\n{label}.", "{text} {label}", "{text}:{label};", '"{text}" is "{label}"', "{text}☃{label}",
    "<M>{text}<M>{label}<M>", "<M>user\n{text}<M>\n<M>bot\n{label}<M>",
)  # fmt: skip
SEPARATORS = ("\n", "\n\n", " ", "<M>", " | ")


@dataclass(frozen=True)
class Case:
    """One prompt to be made, and what it is made of."""

    tokenizer: str
    template: Template
    kind: str
    system: str | None
    written: Template
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    words: tuple[str, ...]
    score_on: Any
    prepend_bos: bool | None


def marks_of(tokenizer: Any) -> list[str]:
    """What is one token where the template writes it, and text elsewhere."""
    return [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or token.content in (tokenizer.chat_template or "")
    ]


def draw_case(rng: random.Random, tokenizers: Mapping[str, Any]) -> Case:
    """A random case; a template that cannot be is drawn again."""
    while True:
        name = rng.choice(list(tokenizers))
        tokenizer = tokenizers[name]
        words = rng.sample(WORDS, 2) if rng.random() < 0.6 else ["positive", "negative"]
        demos = rng.randint(0, 4)
        texts = tuple(
            "".join(rng.choice(BITS) for _ in range(rng.randint(1, 5))).strip() or "x"
            for _ in range(demos + 1)
        )
        if rng.random() < 0.4:
            texts = tuple(rng.choice(("a gripping film", "dull and lifeless", "x")) for _ in texts)
        special = marks_of(tokenizer) or ["*"]

        def filled(text: str, special: list[str] = special) -> str:
            return re.sub("<M>", lambda _: rng.choice(special), text)

        kind = rng.choice(("turns", "one turn", "plain")) if tokenizer.chat_template else "plain"
        system = rng.choice((None, "Be brief.")) if kind != "plain" else None
        plain = kind == "plain"
        shapes = SHAPES if plain else [shape for shape in SHAPES if "<M>" not in shape]
        shape, prefix = filled(rng.choice(shapes)), rng.choice(("", "", "Sort these.\n"))
        separators = SEPARATORS if plain else SEPARATORS[:2]
        try:
            written = template = Template(
                shape,
                filled(rng.choice(separators)),
                filled("<M>") if plain and rng.random() < 0.3 else prefix,
            )
            if not plain:
                template = Template.chat(tokenizer, written, turns=kind == "turns", system=system)
        except LensError as error:
            if error.code == "chat-template":
                continue
            raise
        return Case(
            name, template, kind, system, written, texts, tuple(rng.randrange(2) for _ in range(demos)),
            tuple(template.bare(word) for word in words), rng.choice(("first_token", "sequence")),
            rng.choice((None, None, True, False)),
        )  # fmt: skip


def made(case: Case, tokenizer: Any) -> PromptSet:
    """The case's prompt."""
    adapter: Any = SimpleNamespace(
        tokenizer=tokenizer, name="none", kind="none", shape=ModelShape(2, 2, 2, None, 10**6), model=None,
        dtype=torch.float32, device=torch.device("cpu"), missing_attention=dict, watching=dict, forward=dict,
    )  # fmt: skip
    *shown, test = case.texts
    demos = tuple(Example((text,), label) for text, label in zip(shown, case.labels, strict=True))
    return build_prompts(
        adapter, [Episode(demos, Example((test,), 0), case.words, 0)], case.template, info=PromptInfo(),
        classes=("a", "b"), score_on=case.score_on, prepend_bos=case.prepend_bos,
    )  # fmt: skip


def text_of(case: Case) -> tuple[str, list[tuple[int, int]], str]:
    """The prompt's text, the characters of each label, and the gap before the answer; told from the template alone."""
    template, text, labels = case.template, case.template.prefix, []
    for shown, label in zip(case.texts, case.labels, strict=False):
        before, after = template.demo.split("{label}")
        text += before.replace("{text}", shown)
        labels.append((len(text), len(text) + len(case.words[label])))
        text += case.words[label] + after + template.separator
    before = (template.test or template.demo).split("{label}")[0]
    stem = before.rstrip(" ")
    return text + stem.replace("{text}", case.texts[-1]), labels, before[len(stem) :]


def tokens_of(case: Case, tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Hugging Face's own tokens of a text, with the beginning that the case asks for."""
    default = case.prepend_bos is None and not case.template.whole
    out = tokenizer(
        text, add_special_tokens=default, return_offsets_mapping=True, return_special_tokens_mask=True
    )
    rows = list(zip(out["input_ids"], out["offset_mapping"], out["special_tokens_mask"], strict=True))
    while rows and rows[-1][2] and rows[-1][1][0] == rows[-1][1][1]:
        rows.pop()
    bos = tokenizer.bos_token_id
    if len(rows) > 1 and rows[0][0] == rows[1][0] == bos and rows[0][2] and rows[0][1] == (0, 0):
        rows = rows[1:]
    if case.prepend_bos and (not rows or rows[0][0] != bos):
        rows = [(bos, (0, 0), 1), *rows]
    return [row[0] for row in rows], [row[1] for row in rows]


def clean(case: Case, tokenizer: Any, text: str) -> bool:
    """Whether Hugging Face reads the text as meant: no marker is in a user's text or label, or made by joining."""
    marks = re.compile("|".join(map(re.escape, sorted(marks_of(tokenizer), key=len, reverse=True))) or "(?!)")
    template = case.template
    asked = (template.test or template.demo).split("{label}")[0]
    ours = [template.prefix, *[template.demo, template.separator] * len(case.labels), asked]
    return len(marks.findall(text)) == sum(len(marks.findall(part)) for part in ours)


def wrong(case: Case, tokenizer: Any) -> tuple[str, str | None]:
    """What became of a case, and what is wrong with it, if anything is."""
    text, labels, gap = text_of(case)
    compared = clean(case, tokenizer, text) and all(
        clean(case, tokenizer, text + gap + word) for word in case.words
    )
    ids, offsets = tokens_of(case, tokenizer, text)
    answers = [tokens_of(case, tokenizer, text + gap + word) for word in case.words]
    try:
        prompts = made(case, tokenizer)
    except LensError as error:
        if error.code not in ("label-tokens", "label-collision", "label-prefix", "empty-text", "tokenizer"):
            return "refused", f"another reason than expected: {error}"
        if (
            error.code == "label-tokens"
            and compared
            and not _reason(case, tokenizer, ids, offsets, answers, text, labels, gap)
        ):
            return "refused", f"refused without a reason: {error}"
        return f"refused: {error.code}", None
    own = prompts.tokens[0].tolist()
    kept = {t for t, token in tokenizer.added_tokens_decoder.items() if token.special} - {
        tokenizer.unk_token_id
    }
    special = Counter(t for t in own if t in kept)
    if not compared:
        hostile = replace_texts(case)
        expected = tokens_of(hostile, tokenizer, text_of(hostile)[0])[0]
        if special != Counter(t for t in expected if t in kept):
            return "markers in texts", f"special tokens {special} where the template writes {expected}"
    elif own != ids:
        return (
            "compared",
            f"tokens {tokenizer.convert_ids_to_tokens(own)}, {tokenizer.convert_ids_to_tokens(ids)} expected",
        )
    for i, (start, end) in enumerate(labels):
        first, last = prompts.label_spans[0, i].tolist()
        if compared:
            inside = [
                at
                for at, (a, b) in enumerate(offsets)
                if a < b and text[max(a, start) : min(b, end)].strip() and a < end and b > start
            ]
            blank = not tokenizer.decode(own[first : inside[0]]).strip()
            if inside[-1] != last - 1 or first > inside[0] or not blank:
                return "compared", f"label {i} at {first}–{last - 1}, characters at {inside}"
        spelled = "".join(tokenizer.decode(own[first:last]).split())
        spelled = spelled.replace("##", "")
        if spelled.casefold() != "".join(text[start:end].split()).casefold() and "�" not in spelled:
            return "compared", f"label {i} reads {spelled!r}, {text[start:end]!r} written"
    if compared:
        for label, (whole, _) in enumerate(answers):
            length = int(prompts.label_lengths[0, label])
            if prompts.label_sequences[0, label, :length].tolist() != whole[len(ids) :]:
                return "compared", f"answer {label}"
    return ("compared" if compared else "markers in texts"), None


def replace_texts(case: Case) -> Case:
    """The case with harmless texts and words: only what its template writes can be a marker."""
    fields = vars(case) | {"texts": tuple("x" for _ in case.texts), "words": ("y", "z")}
    return Case(**fields)


def _reason(
    case: Case,
    tokenizer: Any,
    ids: list[int],
    offsets: list[tuple[int, int]],
    answers: Any,
    text: str,
    labels: Any,
    gap: str,
) -> bool:
    """Whether Hugging Face's tokens show why a label cannot be read."""

    def crosses(start: int, end: int, whole: str, spans: list[tuple[int, int]]) -> bool:
        return any(
            (a < start < b and whole[a:start].strip() and whole[start:b].strip())
            or (a < end < b and whole[a:end].strip() and whole[end:b].strip())
            for a, b in spans
        )

    if any(crosses(a, b, text, offsets) for a, b in labels):
        return True
    unknown = {tokenizer.unk_token_id} - {None}
    for word, (whole, spans) in zip(case.words, answers, strict=True):
        answer = whole[len(ids) :]
        full = text + gap + word
        covered = {at for a, b in spans for at in range(a, b)}
        lost = [c for at, c in enumerate(full) if at >= len(text) and at not in covered and c.strip()]
        if whole[: len(ids)] != ids or not answer or unknown & set(answer) or lost:
            return True
        if crosses(len(text) + len(gap), len(full), full, spans):
            return True
        if case.score_on == "first_token" and not tokenizer.decode(answer[:1]).strip():
            return True
    for (start, end), label in zip(labels, case.labels, strict=True):
        while start and text[start - 1] == " ":
            start -= 1
        shown = [t for t, (a, b) in zip(ids, offsets, strict=True) if a < end and b > start]
        if shown != answers[label][0][len(ids) :]:
            return True
    return False


def run_cases(count: int, seed: int, tokenizers: Mapping[str, Any]) -> tuple[Counter[str], list[str]]:
    """What became of `count` random cases, and every wrong one in words."""
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    faults = []
    for number in range(count):
        case = draw_case(rng, tokenizers)
        try:
            what, fault = wrong(case, tokenizers[case.tokenizer])
        except Exception as error:  # whatever is not one of ours is a fault
            what, fault = "crashed", f"{type(error).__name__}: {error}"
        found[what] += 1
        if fault:
            faults.append(f"case {number}: {fault}\n  {case}")
    return found, faults


def main() -> None:
    """Print what became of the cases, and those that are wrong."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "prompts"))
    from small_tokenizers import CHATS, byte_level, metaspace, word_pieces  # pyright: ignore[reportMissingImports]

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    makers = {
        **CHATS,
        "byte_level": byte_level,
        "bytes_bos": lambda: byte_level(True),
        "metaspace": metaspace,
        "word_pieces": word_pieces,
    }
    found, faults = run_cases(given.cases, given.seed, {name: make() for name, make in makers.items()})
    for what, number in sorted(found.items()):
        print(f"{number:7d}  {what}")
    print(f"{len(faults)} wrong of {given.cases}", *faults[:20], sep="\n")


if __name__ == "__main__":
    main()
