"""What a few-shot classification task is, before any token exists.

An `Example` is one labelled text, an `Episode` is what one prompt will be made of (demonstrations,
one test input, the label words in force), and a `Task` draws episodes from labelled examples.
Nothing here knows a tokenizer or a model; `prompts/` turns episodes into tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from icl_kernel_lens.errors import TaskError
from icl_kernel_lens.tasks.template import Template

if TYPE_CHECKING:
    from icl_kernel_lens.prompts import PromptSet


@dataclass(frozen=True)
class Example:
    """One labelled text; natural-language-inference tasks have two text fields."""

    texts: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Episode:
    """The material of one prompt: answered demonstrations, one test input, and the label words.

    `demo_set` numbers the demonstration set: episodes with the same number show the same
    demonstrations in the same order, and are therefore not independent of each other.
    """

    demos: tuple[Example, ...]
    test: Example
    label_words: tuple[str, ...]
    demo_set: int

    def without_demos(self) -> Episode:
        """The same test input with no demonstration before it."""
        return replace(self, demos=())

    def with_permuted_labels(self, rng: random.Random) -> Episode:
        """The same demonstrations with their labels dealt out anew (a uniform permutation)."""
        labels = [demo.label for demo in self.demos]
        rng.shuffle(labels)
        return replace(
            self,
            demos=tuple(replace(d, label=y) for d, y in zip(self.demos, labels, strict=True)),
        )


@runtime_checkable
class EpisodeSource(Protocol):
    """Anything prompts can be drawn from: a `Task`, or a world such as `worlds.topics.TopicsTask`."""

    @property
    def name(self) -> str: ...
    @property
    def template(self) -> Template: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def origin(self) -> str: ...
    def episodes(
        self,
        *,
        demos: int,
        count: int,
        seed: int,
        sets: int | None,
        balanced: bool,
        given: Sequence[Example] | None,
    ) -> list[Episode]: ...


class MakesPrompts:
    """Gives an episode source its `prompts` method."""

    def prompts(
        self: EpisodeSource,
        model: Any,
        *,
        demos: int = 16,
        count: int = 400,
        seed: int = 0,
        sets: int | None = None,
        balanced: bool = False,
        given: Sequence[Example] | None = None,
        score_on: Literal["first_token", "sequence"] = "first_token",
        prepend_bos: bool | None = None,
        match_lengths: bool = False,
    ) -> PromptSet:
        """Few-shot prompts for `model`: `demos` demonstrations and a test input each.

        Demonstrations are fresh for every test input (Han et al. 2025), or `sets=G` sets are each shared by
        `count / G` test inputs. `balanced` shows every class equally often; `given` fixes the
        demonstrations, in this order, and their number is then theirs. Labels are compared by the logit of
        their `first_token`, or by the log-probability of the whole `sequence`. `prepend_bos=None` does
        what the tokenizer does by default. `match_lengths` draws demonstrations whose inputs have equally many
        tokens, and test inputs likewise (of as few lengths as hold `count`, where one does not), so that
        `corrupt` can exchange them; demonstrations that are `given` stay as they are.

        Raises: TaskError: not enough examples. PromptError: equal first label tokens, prompts too long, too few
        examples of equal length.
        """
        from icl_kernel_lens.prompts import prompts_from
        from icl_kernel_lens.prompts.corrupt import matched_episodes

        drawn = {
            "demos": demos,
            "count": count,
            "seed": seed,
            "sets": sets,
            "balanced": balanced,
            "given": given,
        }
        episodes = matched_episodes(self, model, **drawn) if match_lengths else self.episodes(**drawn)
        return prompts_from(
            self,
            episodes,
            model,
            seed=seed,
            sets=sets,
            balanced=balanced,
            given=given is not None,
            score_on=score_on,
            prepend_bos=prepend_bos,
        )


@dataclass(frozen=True, repr=False)
class Task(MakesPrompts):
    """A labelled pool for demonstrations, a labelled pool for test inputs, and the words to show.

    `train` feeds the demonstrations and `test` the test inputs; a text that is in both is never drawn as a
    demonstration before itself. `label_words[c]` is the text written for class c, without the leading space that the template puts before it.
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
        if len(self.classes) < 2:
            raise TaskError(
                f"a classification task must have at least two classes; {self.name!r} has "
                f"{list(self.classes)}. Check which field holds the label."
            )
        if len(self.label_words) != len(self.classes):
            raise TaskError(
                f"every class needs one label word; {self.name!r} has {len(self.classes)} classes "
                f"{list(self.classes)} and {len(self.label_words)} label words "
                f"{list(self.label_words)}. Give label_words in the order of the classes."
            )
        words = [word.strip() for word in self.label_words]
        if len(set(words)) < len(words) or "" in words:
            raise TaskError(
                f"label words must be different and not empty; {self.name!r} has {words}. "
                "Choose other words in label_words."
            )
        for split, pool in (("train", self.train), ("test", self.test)):
            for row, example in enumerate(pool):
                if not 0 <= example.label < len(self.classes):
                    raise TaskError(
                        f"labels must lie in 0…{len(self.classes) - 1}; row {row} of the {split} "
                        f"pool of {self.name!r} has label {example.label}."
                    )
                if len(example.texts) != self.template.fields:
                    raise TaskError(
                        f"the template of {self.name!r} shows {self.template.fields} text field(s); "
                        f"row {row} of the {split} pool has {len(example.texts)}."
                    )
            counts = self.class_counts(split)
            if empty := [c for c, n in zip(self.classes, counts, strict=True) if n == 0]:
                raise TaskError(
                    f"every class must have an example in each pool; the {split} pool of "
                    f"{self.name!r} has none for {empty} (counts {counts}). The label field or the "
                    "label names may be wrong, or the file too short."
                )

    @classmethod
    def from_records(
        cls,
        train: Iterable[Mapping[str, Any]],
        test: Iterable[Mapping[str, Any]],
        **options: Any,
    ) -> Task:
        """A task from dictionaries in memory, `{"text": …, "label": …}` (and `"text2"`).

        Labels are class numbers from 0 (named by a `"label_name"` field, if there is one) or names.
        Options: `name`, `text_fields`, `label_field`, `classes`, `label_words` (default: the class names),
        `template`, `origin`, `licence`.
        """
        from icl_kernel_lens.tasks.load import task_from_records

        return task_from_records(train, test, **options)

    @classmethod
    def from_files(cls, train: str | Path, test: str | Path | None = None, **options: Any) -> Task:
        """A task from jsonl, csv, tsv or parquet files with the fields of `from_records`.

        Without `test`, the file's rows are split in halves, always the same way.
        """
        from icl_kernel_lens.tasks.load import task_from_files

        return task_from_files(train, test, **options)

    def class_counts(self, split: str) -> list[int]:
        """Examples of each class in the `train` or the `test` pool."""
        pool = self.train if split == "train" else self.test
        return [sum(e.label == c for e in pool) for c in range(len(self.classes))]

    def __repr__(self) -> str:
        words = ", ".join(f"{c}={w!r}" for c, w in zip(self.classes, self.label_words, strict=True))
        return (
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
        number of demonstrations (to within one). `given` fixes the demonstrations.
        """
        return self.draw(
            self.train,
            self.test,
            demos=demos,
            count=count,
            seed=seed,
            sets=sets,
            balanced=balanced,
            given=given,
        )

    def draw(
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
        check_counts(demos, count)
        rng = random.Random(f"{self.name}/{seed}")
        if count > len(test):
            raise TaskError(
                f"every prompt needs its own test input; {count} were asked for and the test pool of "
                f"{self.name!r} has {len(test)}. Ask for fewer prompts."
            )
        tests = rng.sample(test, count)
        groups = shared_sets(count, 1 if given is not None else sets)
        if given is not None:
            if wrong := [e.label for e in given if not 0 <= e.label < len(self.classes)]:
                raise TaskError(
                    f"labels must lie in 0…{len(self.classes) - 1} for {self.name!r}; given has {wrong}."
                )
            drawn = {0: tuple(given)}
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
                f"pool of {self.name!r} has {len(train)} examples{less}. Ask for fewer demonstrations."
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
                    "or balanced=False."
                )
            chosen += rng.sample(own, quota)
        rng.shuffle(chosen)
        return tuple(chosen)


def check_counts(demos: int, count: int) -> None:
    """Refuse what cannot be drawn."""
    if demos < 0 or count < 1:
        raise TaskError(f"prompts need demos >= 0 and count >= 1; got demos={demos}, count={count}.")


def shared_sets(count: int, sets: int | None) -> list[int]:
    """The demonstration set of each prompt: one each, or `sets` sets shared evenly, in order."""
    if sets is None:
        return list(range(count))
    if sets < 1 or count % sets:
        raise TaskError(
            f"{count} prompts cannot be shared evenly by {sets} demonstration sets. Choose a count "
            "that is a multiple of sets."
        )
    return [prompt * sets // count for prompt in range(count)]
