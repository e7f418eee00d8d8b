"""The text of the topics world: legible few-shot documents in which only the context can tell the label.

A document picks two topics and two label words at random and pairs them. Each example is a few words
of one topic among a few neutral words, then `is`, then the topic's label word:

    harbor also sail tide is red . violin then drum chord is green . sail often harbor is …

The label words mean something else in every document, so a model that answers right has learned them
from the demonstrations. `split="train"` and `split="heldout"` never share a pair of topics or a
pair of label words.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal

from icl_kernel_lens.errors import TaskError
from icl_kernel_lens.prompts.example import Episode, Example
from icl_kernel_lens.prompts.template import Template
from icl_kernel_lens.tasks.source import MakesPrompts, shared_sets

TOPICS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "sea": "harbor sail tide anchor reef dock wave captain",
        "music": "violin drum chord melody flute tempo singer opera",
        "kitchen": "oven skillet butter recipe spoon dough broth chef",
        "forest": "pine moss fern trail acorn bark owl thicket",
        "space": "rocket orbit comet lunar astronaut galaxy meteor probe",
        "court": "judge lawyer verdict jury trial plea witness appeal",
        "farm": "tractor barn harvest wheat plow cattle hay orchard",
        "school": "teacher pupil lesson chalk homework exam grade campus",
        "hospital": "nurse surgeon clinic patient ward vaccine suture pulse",
        "war": "soldier cannon siege trench armor battle general truce",
        "money": "bank loan credit deposit interest broker dividend coin",
        "weather": "storm thunder drizzle fog frost breeze hail cloud",
        "sports": "goal referee stadium coach striker league trophy dribble",
        "clothes": "jacket sleeve button scarf denim collar tailor hem",
        "house": "roof chimney cellar hallway attic window stairs porch",
        "city": "subway avenue traffic skyline plaza taxi mayor suburb",
        "desert": "dune camel cactus oasis mirage scorpion nomad sand",
        "winter": "snow sled icicle mitten skate blizzard igloo glacier",
        "garden": "tulip rake hedge seedling trowel compost lawn rose",
        "computer": "keyboard server compiler pixel router software cache browser",
        "chemistry": "acid beaker molecule solvent catalyst ion polymer flask",
        "theater": "actor stage curtain rehearsal costume script applause director",
        "printing": "ink paper margin typeface editor binding column press",
        "insects": "beetle wasp moth cricket larva hive antenna mantis",
        "dogs": "leash puppy kennel collie terrier bone fetch howl",
        "aviation": "pilot runway cockpit glider propeller hangar altitude wing",
        "railway": "locomotive platform conductor carriage signal tunnel freight junction",
        "painting": "canvas brush easel portrait palette gallery fresco varnish",
        "geometry": "triangle angle radius circle vertex polygon theorem parallel",
        "mining": "shaft ore pickaxe quarry seam drill copper tunneler",
        "royalty": "king throne crown palace duchess scepter heir castle",
        "coffee": "espresso bean roast mug filter barista grinder latte",
    }.items()
}
"""32 topics of 8 words; no word is shared."""

NEUTRAL = tuple(
    "also then often near with some many other again still very quite rather almost maybe just "
    "even soon later here there every while after before under about along among beyond within "
    "through toward around behind until since across above below".split()
)
"""40 words that belong to no topic. In `words="unseen"` they serve as labels, which they never are in training."""

LABEL_WORDS = tuple(
    "red blue green yellow purple orange pink brown black white gray gold silver violet scarlet "
    "crimson azure teal ivory amber north south east west alpha beta gamma delta sigma omega theta "
    "kappa monday tuesday wednesday thursday friday saturday sunday january april august october "
    "december seven eleven forty million".split()
)
"""48 label words; none is a topic word or a neutral word."""

TEMPLATE = Template(demo="{text} is {label}", separator=" . ")

Split = Literal["train", "heldout"]
LabelWords = Literal["seen", "unseen"]


@cache
def _heldout(pair: tuple[str, str]) -> bool:
    """One pair in five is kept out of training; a checksum decides, so the split needs no file."""
    return zlib.crc32(" ".join(sorted(pair)).encode()) % 5 == 0


def draw_words(rng: random.Random, topic: str) -> str:
    """Three or four words of the topic and none to two neutral words, in random order."""
    words = rng.sample(TOPICS[topic], rng.randint(3, 4)) + rng.sample(NEUTRAL, rng.randint(0, 2))
    rng.shuffle(words)
    return " ".join(words)


@dataclass(frozen=True)
class Document:
    """The latent choices of one document: the topic and the label word of each of its classes."""

    topics: tuple[str, ...]
    label_words: tuple[str, ...]

    @classmethod
    def draw(cls, rng: random.Random, split: Split, words: LabelWords = "seen", classes: int = 2) -> Document:
        """Topics and label words all of whose pairs belong to the split, paired at random."""
        topics = _draw_apart(rng, list(TOPICS), split, classes)
        if words == "unseen":
            return cls(topics, tuple(rng.sample(NEUTRAL, classes)))
        return cls(topics, _draw_apart(rng, list(LABEL_WORDS), split, classes))

    def example(self, rng: random.Random, label: int) -> Example:
        return Example((draw_words(rng, self.topics[label]),), label)


def _draw_apart(rng: random.Random, pool: list[str], split: Split, count: int) -> tuple[str, ...]:
    """`count` different words of the pool, every pair of which is in the split."""
    while True:
        drawn = rng.sample(pool, count)
        if all(_heldout(pair) == (split == "heldout") for pair in combinations(drawn, 2)):
            return tuple(drawn)


@dataclass(frozen=True)
class TopicsTask(MakesPrompts):
    """Draws few-shot prompts from the topics world; the bundled task of `load_task("topics")`."""

    template = TEMPLATE
    classes = ("first topic", "second topic")
    """The document's first and second topic; which topics those are differs per prompt."""
    origin = "generated (icl_kernel_lens.tasks.topics)"

    split: Split = "heldout"
    words: LabelWords = "seen"

    @property
    def name(self) -> str:
        return "topics" if self.words == "seen" else "topics-unseen-labels"

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
        """Draw `count` documents of `demos` demonstrations and a test input; labels are fair coins.

        With `sets=G`, the G documents are each shared by `count / G` test inputs.
        """
        if given is not None:
            raise TaskError(
                "the topics world draws a new pair of topics for every document, so demonstrations cannot be "
                "given. For fixed demonstrations, make a task with Task.from_records.",
                code="task-fixed",
            )
        found: list[Episode] = []
        shared: dict[int, tuple[random.Random, Document, tuple[Example, ...]]] = {}
        for group in shared_sets(demos, count, sets):
            if group not in shared:  # each document has its own generator: the count changes no document
                rng = random.Random(f"topics/{self.split}/{self.words}/{seed}/{group}")
                document = Document.draw(rng, self.split, self.words)
                labels = [rng.randrange(2) for _ in range(demos)]
                if balanced:
                    first = rng.randrange(2)  # of an odd number, either class may get the one more
                    labels = [(first + i) % 2 for i in range(demos)]
                    rng.shuffle(labels)
                shared[group] = rng, document, tuple(document.example(rng, label) for label in labels)
            rng, document, shown = shared[group]
            test = document.example(rng, rng.randrange(2))
            found.append(Episode(shown, test, document.label_words, group))
        return found


def vocabulary() -> list[str]:
    """Every word of the world, in a fixed order, after the three special tokens."""
    words = [word for topic in TOPICS.values() for word in topic]
    return ["<pad>", "<bos>", "<unk>", "is", ".", *words, *NEUTRAL, *LABEL_WORDS]
