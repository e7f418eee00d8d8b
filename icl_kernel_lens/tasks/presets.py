"""The classification tasks known by name: where they are on the Hub, how they are written, their words.

The first six are those of Han et al. (TMLR 2025); the paper does not state its templates or label words,
so these are ours. Data are fetched from the Hub only when a task is asked for by name; nothing is shipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from icl_kernel_lens.prompts.template import Template

REVIEW = Template("Review: {text}\nSentiment: {label}")
PAIR = Template("Premise: {text}\nHypothesis: {text2}\nEntailment: {label}")


def tweet(what: str) -> Template:
    """How the tweet tasks are written: the question's key word before a yes or no."""
    return Template(f"Tweet: {{text}}\n{what}: {{label}}")


@dataclass(frozen=True)
class Preset:
    """One task on the Hub. `words` maps its classes, in the order of their numbers there, to label words."""

    path: str
    words: Mapping[str, str]
    template: Template
    config: str | None = None
    text_fields: tuple[str, ...] = ("text",)
    label_field: str = "label"
    train: str = "train"
    test: str = "validation"
    revision: str | None = None
    licence: str = "not stated by the data set"


PRESETS: dict[str, Preset] = {
    "sst2": Preset(
        "stanfordnlp/sst2", {"negative": "negative", "positive": "positive"}, REVIEW,
        text_fields=("sentence",),
    ),
    "mnli": Preset(
        "nyu-mll/multi_nli", {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}, PAIR,
        text_fields=("premise", "hypothesis"), test="validation_matched",
        licence="mixed: OANC, CC-BY-3.0, CC-BY-SA-3.0, MIT",
    ),
    "rotten_tomatoes": Preset(
        "cornell-movie-review-data/rotten_tomatoes", {"negative": "negative", "positive": "positive"}, REVIEW,
    ),
    "tweet_eval_hate": Preset(
        "cardiffnlp/tweet_eval", {"non-hate": "no", "hate": "yes"}, tweet("Hateful"), config="hate",
    ),
    "tweet_eval_irony": Preset(
        "cardiffnlp/tweet_eval", {"non-irony": "no", "irony": "yes"}, tweet("Ironic"), config="irony",
    ),
    "tweet_eval_offensive": Preset(
        "cardiffnlp/tweet_eval", {"non-offensive": "no", "offensive": "yes"}, tweet("Offensive"),
        config="offensive",
    ),
    "ag_news": Preset(
        "fancyzhx/ag_news",
        {"World": "world", "Sports": "sports", "Business": "business", "Sci/Tech": "technology"},
        Template("Article: {text}\nTopic: {label}"), test="test",
    ),
    "trec": Preset(
        "CogComp/trec",
        {
            "abbreviation": "abbreviation", "entity": "entity", "description": "description",
            "human": "person", "location": "location", "number": "number",
        },
        Template("Question: {text}\nAsks for: {label}"), label_field="coarse_label", test="test",
        revision="refs/convert/parquet",
    ),
    "subj": Preset(
        "SetFit/subj", {"objective": "objective", "subjective": "subjective"},
        Template("Sentence: {text}\nType: {label}"), test="test",
    ),
    "cb": Preset(
        "aps/super_glue", {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}, PAIR,
        config="cb", text_fields=("premise", "hypothesis"),
    ),
    "rte": Preset(
        "nyu-mll/glue", {"entailment": "yes", "not_entailment": "no"}, PAIR,
        config="rte", text_fields=("sentence1", "sentence2"),
    ),
}  # fmt: skip
