"""Sources of episodes, from which prompts are drawn: what they must offer, and the `prompts` method they share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.errors import TaskError
from icl_kernel_lens.models.adapter import ModelAdapter, as_adapter
from icl_kernel_lens.prompts.build import build_prompts
from icl_kernel_lens.prompts.example import Episode, Example
from icl_kernel_lens.prompts.promptset import PromptInfo, PromptSet, ScoreOn
from icl_kernel_lens.prompts.template import Template
from icl_kernel_lens.tasks.matching import episodes_of_one_length


@runtime_checkable
class EpisodeSource(Protocol):
    """Anything that prompts can be drawn from: a `Task`, or a world such as `TopicsTask`."""

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
    def matched_episodes(self, adapter: ModelAdapter, **drawn: Any) -> list[Episode]: ...


class MakesPrompts:
    """Gives a source of episodes its `prompts` method."""

    @checked
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
        score_on: ScoreOn = "first_token",
        prepend_bos: bool | None = None,
        match_lengths: bool = False,
    ) -> PromptSet:
        """Few-shot prompts for `model`: `demos` demonstrations and a test input each.

        Demonstrations are fresh for every test input (Han et al. 2025), or `sets=G` sets are each shared by
        `count / G` test inputs. `balanced` shows every class equally often. `given` fixes the demonstrations and
        their order; `demos` is then not used. Labels are compared by the logit of their `first_token`, or by the
        log-probability of the whole `sequence`. `prepend_bos=None` does what the tokenizer does by default.
        `match_lengths` draws demonstrations whose inputs have equally many tokens, and test inputs likewise (of as
        few lengths as hold `count`), so that `corrupt` can exchange them; demonstrations that are `given` stay.

        Raises: TaskError: not enough examples. PromptError: equal first label tokens, prompts too long, too few
        examples of equal length.
        """
        adapter = as_adapter(model)
        shared_sets(demos, count, sets if given is None else 1)
        draw = partial(self.matched_episodes, adapter) if match_lengths else self.episodes
        episodes = draw(demos=demos, count=count, seed=seed, sets=sets, balanced=balanced, given=given)
        return build_prompts(
            adapter,
            episodes,
            self.template,
            info=PromptInfo(
                task=self.name,
                origin=self.origin,
                demos=len(episodes[0].demos),
                sets=sets if given is None else 1,
                balanced=balanced,
                seed=seed,
            ),
            classes=self.classes,
            score_on=score_on,
            prepend_bos=prepend_bos,
        )

    def matched_episodes(self: EpisodeSource, adapter: ModelAdapter, **drawn: Any) -> list[Episode]:
        """As `episodes`, with inputs of equally many tokens; this is for worlds, which draw without end."""
        return episodes_of_one_length(
            self.episodes, adapter, self.template, classes=len(self.classes), name=self.name, **drawn
        )


MOST_PROMPTS = 1_000_000
"""More are surely a mistake, and would fill the memory before anything is drawn."""


def shared_sets(demos: int, count: int, sets: int | None) -> list[int]:
    """The demonstration set of each of `count` prompts: one each, or `sets` sets shared evenly, in order.

    Raises: TaskError: no prompts, a negative number of demonstrations, or sets that cannot be shared evenly.
    """
    if demos < 0 or count < 1:
        raise TaskError(
            f"prompts need demos >= 0 and count >= 1; got demos={demos}, count={count}.", code="number-range"
        )
    if count > MOST_PROMPTS:
        raise TaskError(
            f"at most {MOST_PROMPTS:,} prompts are made at once; got count={count:,}. Make them in several sets.",
            code="number-range",
        )
    if sets is None:
        return list(range(count))
    if sets < 1 or count % sets:
        raise TaskError(
            f"{count} prompts cannot be shared evenly by {sets} demonstration sets. Choose a count "
            "that is a multiple of sets.",
            code="number-range",
        )
    return [prompt * sets // count for prompt in range(count)]
