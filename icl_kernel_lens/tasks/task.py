"""A few-shot classification task: labelled examples, the words for its classes, and how episodes are drawn from them.

An `Example` is one labelled text; an `Episode` holds the demonstrations, the test input and the label words of one
prompt, before any token exists. `Task.prompts` turns episodes into tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icl_kernel_lens.arguments import argument, checked
from icl_kernel_lens.errors import TaskError
from icl_kernel_lens.models.adapter import ModelAdapter
from icl_kernel_lens.prompts.example import Episode, Example, one_word_each
from icl_kernel_lens.prompts.template import Template
from icl_kernel_lens.signs import legible
from icl_kernel_lens.tasks.matching import (
    class_counts,
    demos_of_one_length,
    find_layouts,
    tests_of_few_lengths,
)
from icl_kernel_lens.tasks.records import pools_of, read_pools, task_fields
from icl_kernel_lens.tasks.source import MakesPrompts, shared_sets


@dataclass(frozen=True, repr=False)
class Task(MakesPrompts):
    """A labelled pool for demonstrations, a labelled pool for test inputs, and the words to show.

    `train` feeds the demonstrations and `test` the test inputs; a text that is in both is never drawn as a
    demonstration before itself. `label_words[c]` is the text written for class c; a leading space is dropped where the
    template has its own. A dictionary of label words is read by the classes' names or numbers.
    """

    name: str
    classes: tuple[str, ...]
    label_words: tuple[str, ...]
    template: Template
    train: tuple[Example, ...] = field(compare=False)
    test: tuple[Example, ...] = field(compare=False)
    origin: str = "given in memory"
    licence: str = "unknown"

    def __post_init__(self) -> None:
        object.__setattr__(self, "template", argument("template", self.template, Template))
        if len(self.classes) < 2:
            raise TaskError(
                f"a classification task must have at least two classes; {self.name!r} has "
                f"{list(self.classes)}. Check which field holds the label.",
                code="too-few-labels",
            )
        words = tuple(map(self.template.bare, one_word_each(self.label_words, self.classes)))
        object.__setattr__(self, "label_words", words)
        if len(words) != len(self.classes):
            raise TaskError(
                f"every class needs one label word; {self.name!r} has {len(self.classes)} classes "
                f"{list(self.classes)} and {len(words)} label words {list(words)}. Give label_words in the order of the "
                "classes.",
                code="label-words",
            )
        plain = [word.strip() for word in words]
        if len(set(plain)) < len(plain) or "" in plain:
            raise TaskError(
                f"label words must be different and not empty; {self.name!r} has {plain}. "
                "Choose other words in label_words.",
                code="label-words",
            )
        for split, pool in (("train", self.train), ("test", self.test)):
            self._check_examples(pool, "row", f"the {split} pool of {self.name!r}")
            counts = self.class_counts(split)
            if empty := [c for c, n in zip(self.classes, counts, strict=True) if n == 0]:
                raise TaskError(
                    f"every class must have an example in each pool; the {split} pool of "
                    f"{self.name!r} has none for {empty} (counts {counts}). The label field or the "
                    "label names may be wrong, or the file too short.",
                    code="task-pool",
                )
            if len({example.texts for example in pool}) == 1:
                raise TaskError(
                    f"texts must differ for labels to depend on them; all {len(pool)} rows of the {split} pool of "
                    f"{self.name!r} are {pool[0].texts!r:.80}. Check which fields hold the text (text_fields, --text-fields).",
                    code="task-pool",
                )

    def _check_examples(self, pool: Sequence[Any], one: str, where: str) -> None:
        """Refuse examples that are none, whose label is no class, or whose texts the template does not show."""
        for number, example in enumerate(pool):
            if not isinstance(example, Example):
                raise TaskError(
                    f'{where} must hold examples, as Example(("a gripping film",), 1); {one} {number} is '
                    f"{example!r:.80} ({type(example).__name__}).",
                    code="wrong-type",
                )
            if not 0 <= example.label < len(self.classes):
                raise TaskError(
                    f"labels must lie in 0…{len(self.classes) - 1}; {one} {number} of {where} has label "
                    f"{example.label}.",
                    code="label-range",
                )
            if len(example.texts) != self.template.fields:
                raise TaskError(
                    f"the template of {self.name!r} shows {self.template.fields} text field(s); {one} {number} of "
                    f"{where} has {len(example.texts)}.",
                    code="task-field",
                )

    @classmethod
    def from_records(
        cls,
        train: Any,
        test: Any = None,
        **options: Any,
    ) -> Task:
        """A task from dictionaries in memory, `{"text": …, "label": …}` (and `"text2"`).

        Rows may also be a pandas DataFrame or a Hugging Face `Dataset`, whose class names are kept; a `DatasetDict`
        brings both pools. Without `test`, the rows are split in halves, always the same way.
        Labels are class numbers from 0 (named by a `"label_name"` field, if there is one) or names.
        Options: `name`, `text_fields`, `label_field`, `classes`, `label_words` (default: the class names),
        `template`, `origin`, `licence`.
        """
        *pools, known = pools_of(train, test, options.get("label_field", "label"))
        return cls(**task_fields(*pools, **({"classes": known} if known else {}) | options))

    @classmethod
    @checked
    def from_files(cls, train: str | Path, test: str | Path | None = None, **options: Any) -> Task:
        """A task from jsonl, csv, tsv or parquet files with the fields of `from_records`.

        Without `test`, the file's rows are split in halves, always the same way.
        """
        train, test = Path(train), None if test is None else Path(test)
        *pools, origin = read_pools(train, test)
        given = {name: value for name, value in options.items() if value is not None}
        return cls.from_records(*pools, **{"name": train.name.split(".")[0], "origin": origin} | given)

    def class_counts(self, split: str) -> list[int]:
        """Examples of each class in the `train` or the `test` pool."""
        return class_counts(self.train if split == "train" else self.test, len(self.classes))

    def __repr__(self) -> str:
        words = ", ".join(f"{c}={w!r}" for c, w in zip(self.classes, self.label_words, strict=True))
        return legible(
            f"Task({self.name!r}: {words}; {len(self.train)} train, {len(self.test)} test; "
            f"template {self.template.demo!r}; {self.origin}; licence {self.licence})"
        )

    def episodes(
        self,
        *,
        demos: int,
        count: int,
        seed: int,
        sets: int | None = None,
        balanced: bool = False,
        given: Sequence[Example] | None = None,
    ) -> list[Episode]:
        """Draw `count` episodes; the same seed gives the same episodes on every machine.

        Without `sets`, every test input gets fresh demonstrations (Han et al. 2025, section 5.2). With
        `sets=G`, G demonstration sets are each shared by `count / G` test inputs. Test inputs are drawn
        without replacement, demonstrations of one set likewise; `balanced` gives every class the same
        number of demonstrations (to within one). `given` fixes the demonstrations, and their texts are then no
        test inputs.

        Raises: TaskError: not enough examples, `given` demonstrations that do not fit the task, or prompts that
            cannot be shared evenly.
        """
        return self._draw(
            self.train,
            self.test,
            demos=demos,
            count=count,
            seed=seed,
            sets=sets,
            balanced=balanced,
            given=given,
        )

    def matched_episodes(self, adapter: ModelAdapter, **drawn: Any) -> list[Episode]:
        """As `episodes`, from the examples whose inputs have equally many tokens (see `tasks.matching`).

        Raises: PromptError: too few of equal length, with the counts found.
        """
        demos, classes = drawn["demos"], len(self.classes)
        found = [
            find_layouts(adapter, self.template, pool, self.label_words[0])
            for pool in (self.train, self.test)
        ]
        train = self.train
        if drawn["given"] is None and demos:
            each = -(-demos // classes) if drawn["balanced"] else 1
            train = demos_of_one_length(
                train, found[0], demos=demos, each=each, classes=classes, name=self.name
            )
        test = tests_of_few_lengths(
            self.test, found[1], count=drawn["count"], seed=drawn["seed"], name=self.name
        )
        return self._draw(train, test, **drawn)

    def _draw(
        self,
        train: Sequence[Example],
        test: Sequence[Example],
        *,
        demos: int,
        count: int,
        seed: int,
        sets: int | None,
        balanced: bool,
        given: Sequence[Example] | None,
    ) -> list[Episode]:
        """`episodes` from these of the pools' examples."""
        groups = shared_sets(demos, count, 1 if given is not None else sets)
        rng = random.Random(f"{self.name}/{seed}".encode(errors="surrogatepass"))
        shown = None if given is None else self._shown(given)
        less = ""
        if shown is not None:
            texts = {example.texts for example in shown}
            test = [example for example in test if example.texts not in texts]
            less = " beside those that given= shows with their labels"
        if count > len(test):
            raise TaskError(
                f"every prompt needs its own test input; {count} were asked for and the test pool of "
                f"{self.name!r} has {len(test)}{less}. Ask for fewer prompts.",
                code="task-pool",
            )
        tests = rng.sample(test, count)
        if shown is not None:
            drawn = {0: shown}
        else:
            twice = {e.texts for e in train} & {e.texts for e in test}
            hidden: dict[int, set[tuple[str, ...]]] = {group: set() for group in groups}
            for group, example in zip(groups, tests, strict=True):
                hidden[group] |= {example.texts} & twice
            drawn = {
                group: self._draw_demos(rng, train, demos, balanced, hidden[group])
                for group in sorted(hidden)
            }
        return [
            Episode(drawn[group], example, self.label_words, group)
            for group, example in zip(groups, tests, strict=True)
        ]

    def _shown(self, given: Any) -> tuple[Example, ...]:
        """The demonstrations of `given=`, checked as the pools are."""
        if isinstance(given, str | Mapping | Example) or not isinstance(given, Iterable):
            raise TaskError(
                'given= must be a list of examples, as [Example(("a gripping film",), 1)]; got '
                f"{given!r:.80} ({type(given).__name__}).",
                code="wrong-type",
            )
        shown = tuple(given)
        self._check_examples(shown, "example", f"given= for {self.name!r}")
        return shown

    def _draw_demos(
        self,
        rng: random.Random,
        pool: Sequence[Example],
        demos: int,
        balanced: bool,
        hidden: set[tuple[str, ...]],
    ) -> tuple[Example, ...]:
        """Demonstrations whose texts are not in `hidden` (the test inputs they will stand before)."""
        train = [e for e in pool if e.texts not in hidden] if hidden else pool
        less = f" beside the {len(hidden)} that it asks for as test inputs" if hidden else ""
        if demos > len(train):
            raise TaskError(
                f"demonstrations are drawn without replacement; {demos} were asked for and the train "
                f"pool of {self.name!r} has {len(train)} examples{less}. Ask for fewer demonstrations.",
                code="task-pool",
            )
        if not balanced:
            return tuple(rng.sample(train, demos))
        order = rng.sample(range(len(self.classes)), len(self.classes))
        chosen: list[Example] = []
        for rank, label in enumerate(order):
            quota = demos // len(order) + (rank < demos % len(order))
            own = [example for example in train if example.label == label]
            if quota > len(own):
                raise TaskError(
                    f"balanced demonstrations need {quota} examples of class {self.classes[label]!r}; "
                    f"the train pool of {self.name!r} has {len(own)}{less}. Ask for fewer demonstrations, "
                    "or balanced=False.",
                    code="task-pool",
                )
            chosen += rng.sample(own, quota)
        rng.shuffle(chosen)
        return tuple(chosen)
