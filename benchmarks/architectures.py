"""Which models are read and changed exactly: every decoder that TransformerLens registers, against Hugging Face alone.

    python -m benchmarks.architectures --out benchmarks/results          every name, one process each
    python -m benchmarks.architectures --one gemma2                      one name; prints a line of JSON
    python -m benchmarks.architectures --docs docs/models.md             the tables, from all results there are

`architecture_configs.py` has the models: tiny, random weights of standard deviation 0.15, so that attention is uneven. Each is
built twice; `huggingface_edits.py` reads and edits one copy, which no other package touches, and the library the other. Four
few-shot prompts of different lengths, longer than every window. Five parts are compared:

    answers     label scores minus that of the first label
    rows        the answer position's attention, every head of every layer
    shared      both again, of six other prompts, three by three with the same demonstrations
    knock_out   label scores when a head's answer row no longer sees the labels, two heads a layer
    edge        label scores of the corrupted run with what a head reads from the labels in the clean one, two heads a layer

exact: the largest difference, over the largest number of the reference, is at most 1e-4 in all five parts.
refused: an error of the library's. not built: transformers or TransformerLens alone cannot make or run it.
crashed: any other exception. not compared: the reference cannot see or make this. wrong: all else.
Does not show: that trained weights, long prompts or half precision are read as exactly.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.architecture_configs import ADDED, CONFIGS, CONTEXT, ENTRIES, VOCAB, Entry
from benchmarks.huggingface_edits import NotSeen, Reference
from benchmarks.tables import Table, environment

TOLERANCE = 1e-4
LEAST = 1e-2
"""The largest effect must be larger, over the same scale, for a comparison of effects to say anything."""
LABELS = (10, 20, 30)
PARTS = ("answers", "rows", "shared", "knock_out", "edge")
BRIDGE, HOOKED = "TransformerBridge", "HookedTransformer"
ORDER = ("exact", "wrong", "crashed", "refused", "not compared", "not built")
SECONDS = 240
"""A process gets."""


def hf_model(entry: Entry, seed: int = 0) -> Any:
    """A small random model with eager attention, in evaluation mode; the same at every call."""
    import transformers

    config = getattr(transformers, entry.config)(**entry.fields)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    hf = getattr(transformers, entry.model)._from_config(config, attn_implementation="eager")
    for name, parameter in hf.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
        elif "bias" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        elif "sink" in name:
            torch.nn.init.normal_(parameter, std=1)
    return hf.eval()


@dataclass(frozen=True)
class Prompts:
    """Few-shot prompts as tensors: as they are, and with every label exchanged."""

    tokens: Tensor
    exchanged: Tensor
    label_pos: Tensor
    labels: Tensor
    answer_pos: Tensor
    demo_set: Tensor

    @classmethod
    def random(cls, *, sets: int, each: int, seed: int) -> Prompts:
        """`each` prompts that share demonstrations, four of 4 to 7 tokens or longer, and have test inputs of their own."""
        generator = torch.Generator().manual_seed(seed)
        demos, width = 4, CONTEXT - 2
        demo_set = torch.arange(sets).repeat_interleave(each)
        gaps = torch.randint(4, 8, (sets, demos), generator=generator) + 3 * torch.arange(sets)[:, None]
        label_pos = gaps.cumsum(1)[demo_set]
        labels = torch.randint(0, 3, (sets, demos), generator=generator)[demo_set]
        shown = torch.randint(31, VOCAB, (sets, width), generator=generator)[demo_set]
        own = torch.randint(31, VOCAB, (sets * each, width), generator=generator)
        tokens = torch.where(torch.arange(width) > label_pos[:, -1:], own, shown)
        words = torch.tensor(LABELS)
        return cls(
            tokens.scatter(1, label_pos, words[labels]),
            tokens.scatter(1, label_pos, words[(labels + 1) % 3]),
            label_pos,
            labels,
            label_pos[:, -1] + torch.randint(2, 9, (sets * each,), generator=generator),
            demo_set,
        )

    @property
    def ends(self) -> list[int]:
        return self.answer_pos.tolist()

    def texts(self, *, exchanged: bool = False) -> list[Tensor]:
        """Each prompt to its answer position."""
        tokens = self.exchanged if exchanged else self.tokens
        return [row[: end + 1] for row, end in zip(tokens, self.ends, strict=True)]

    def set(self, *, exchanged: bool = False) -> Any:
        """The same as a `PromptSet`."""
        from icl_kernel_lens import PromptSet

        return PromptSet.from_tokens(
            self.exchanged if exchanged else self.tokens,
            self.label_pos,
            (self.labels + 1) % 3 if exchanged else self.labels,
            torch.tensor(LABELS),
            answer_pos=self.answer_pos,
            demo_set=self.demo_set,
        )


def relative(logits: Tensor) -> Tensor:
    """Label scores minus that of the first label, of logits (..., vocab)."""
    return (scores := logits[..., list(LABELS)])[..., 1:] - scores[..., :1]


Pair = tuple[Tensor, Tensor]
"""Found and expected."""


class Differ(Exception):
    """What was found has another shape than the reference."""


class Measured:
    """One model's outcome, filled part by part."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, Any]] = {}

    def compare(self, part: str, pairs: Iterable[Pair], base: Tensor | None = None) -> None:
        """Found and expected; with `base`, expected numbers are effects on it, and must be large enough."""
        found, expected = (
            torch.cat([x.flatten() for x in side]).double() for side in zip(*pairs, strict=True)
        )
        # A row of which nothing is left is NaN on both sides.
        base = None if base is None else base.flatten().double()[~expected.isnan()]
        found, expected = found[~expected.isnan()], expected[~expected.isnan()]
        if not len(expected):
            raise NotSeen("nothing is left to be compared")
        scale = expected.abs().max()
        difference = float((found - expected).abs().nan_to_num(0).max() / scale)
        result: dict[str, Any] = {
            "outcome": "exact" if difference <= TOLERANCE else "wrong",
            "difference": difference,
        }
        if missing := int(found.isnan().sum()):
            result |= {"outcome": "wrong", "message": f"{missing} of {found.numel()} numbers are NaN"}
        if base is not None:
            result["effect"] = float((expected - base).abs().max() / scale)
            if result["outcome"] == "exact" and result["effect"] < LEAST:
                result |= {"outcome": "not compared", "message": "effects are too small to be compared"}
        self.parts[part] = result

    def attempt(self, parts: tuple[str, ...], do: Callable[[], None]) -> None:
        """Do it; what is raised is the outcome of these parts."""
        from icl_kernel_lens.errors import LensError

        try:
            do()
        except NotSeen as error:
            found: dict[str, Any] = {"outcome": "not compared", "message": str(error)}
        except Differ as error:
            found = {"outcome": "wrong", "message": str(error)}
        except LensError as error:
            message = re.sub(r"\S*tiny-\w+", "this model", error.message)
            found = {"outcome": "refused", "code": error.code, "message": message}
        except Exception as error:
            found = {"outcome": "crashed", "message": _said(error)}
        else:
            return
        self.parts |= {part: found for part in parts if part not in self.parts}

    def outcome(self) -> str:
        """Of the whole: exact only if every part is."""
        outcomes = {part["outcome"] for part in self.parts.values()}
        worst = ("crashed", "wrong", "not built", "refused", "not compared")
        return next((word for word in worst if word in outcomes), "exact")


def _said(error: BaseException) -> str:
    """What was raised, and where."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{'/'.join(Path(where.filename).parts[-3:])}:{where.lineno}"
    return f"{type(error).__name__}: {error} ({place})"


def measure(name: str, kind: str) -> dict[str, Any]:
    """One model under one class of TransformerLens's."""
    start = time.perf_counter()
    entry, measured = ENTRIES[name], Measured()
    result: dict[str, Any] = {"name": name, "kind": kind, "model": entry.model, "about": entry.about}
    try:
        hf = hf_model(entry)
    except Exception as error:
        return result | {"outcome": "not built", "parts": {}, "message": f"transformers: {_said(error)}"}
    comparison = Comparison(hf, measured, result)
    measured.attempt(PARTS, lambda: comparison.run(_loaded(entry, kind)))
    result |= {"outcome": measured.outcome(), "parts": measured.parts}
    if result["outcome"] != "exact":
        result["transformer_lens"] = _alone(entry, kind, comparison.clean)
    return result | {"seconds": round(time.perf_counter() - start, 1)}


class Comparison:
    """Hugging Face's own runs of the prompts, made before anything else sees a model; and the library's beside them."""

    def __init__(self, hf: Any, measured: Measured, result: dict[str, Any]) -> None:
        self.measured, self.result = measured, result
        self.fresh = Prompts.random(sets=4, each=1, seed=7)
        self.shared = Prompts.random(sets=2, each=3, seed=11)
        self.clean = Reference.of(hf, self.fresh.texts())
        self.corrupted = Reference.of(hf, self.fresh.texts(exchanged=True))
        self.together = Reference.of(hf, self.shared.texts())
        result["reference"] = self.clean.facts()

    def run(self, model: Any) -> None:
        """Every part, each of which may fail for itself."""
        self.model = model
        self.measured.attempt(("answers", "rows"), self.reading)
        self.measured.attempt(("shared",), self.sharing)
        self.measured.attempt(("knock_out",), self.knocking)
        self.measured.attempt(("edge",), self.patching)

    def read(self, prompts: Prompts, reference: Reference) -> tuple[Any, list[Pair], list[Pair]]:
        """A reading; its answers and its rows beside the reference's."""
        from icl_kernel_lens import read

        evidence = read(self.model, prompts.set(), progress=False)
        scores = evidence.label_scores
        answers = [(scores[:, 1:] - scores[:, :1], _base(reference))]
        rows = []
        for i in range(len(prompts.tokens)):
            for layer in reference.found:
                if layer in evidence.missing:
                    continue
                theirs, ours = reference.row(i, layer), evidence.rows[i, layer]
                if len(theirs) != len(ours):
                    raise Differ(f"{len(ours)} heads in layer {layer} for {len(theirs)}")
                rows.append((ours[:, : theirs.shape[1]], theirs))
        return evidence, answers, rows

    def reading(self) -> None:
        evidence, answers, rows = self.read(self.fresh, self.clean)
        self.result["reading"] = evidence.run.reading
        self.result["missing"] = {str(layer): why for layer, why in evidence.missing.items()}
        self.measured.compare("answers", answers)
        if unread := [layer for layer in self.clean.layers if layer in evidence.missing]:
            self.measured.parts["rows"] = {
                "outcome": "refused",
                "code": "layer left out",
                "message": f"layers {unread} are left out: {evidence.missing[unread[0]]}",
            }
        elif not rows:
            raise NotSeen("the reference sees no attention weights")
        else:
            self.measured.compare("rows", rows)
            self.result["rows_from"] = self.clean.own()

    def sharing(self) -> None:
        evidence, answers, rows = self.read(self.shared, self.together)
        self.result["reading_shared"] = evidence.run.reading
        self.measured.compare("shared", [(x / _size(answers), y / _size(answers)) for x, y in answers] + rows)

    def effects(
        self, part: str, result: Any, base: Tensor, expected: Callable[[int, int, int], Tensor]
    ) -> None:
        """Two heads of each layer, in every prompt."""
        scores, pairs = result.label_scores, []
        if scores.dim() == 5:  # the axis of offsets
            scores = scores[..., 0, :]
        heads = self.heads()
        for i in range(len(scores)):
            for layer, head in heads:
                ours = scores[i, layer, head]
                try:
                    theirs = relative(expected(i, layer, head))
                except Exception as error:
                    raise NotSeen(f"the reference cannot be changed: {_said(error)}") from error
                pairs.append((ours[1:] - ours[:1], theirs))
        self.measured.compare(part, pairs, base[:, None].expand(-1, len(heads), -1))

    def heads(self) -> list[tuple[int, int]]:
        """Which are changed; without a reference all are, so that a refusal is heard."""
        return [
            (layer, head)
            for layer in self.clean.found
            for head in sorted({number % self.clean.heads(layer) for number in (layer, layer + 2)})
        ]

    def keys(self, i: int) -> list[int]:
        return self.fresh.label_pos[i].tolist()

    def knocking(self) -> None:
        from icl_kernel_lens import knock_out

        found = knock_out(
            self.model, self.fresh.set(), heads=self.heads() or None, controls=False, progress=False
        )
        _ = self.clean.layers
        self.effects(
            "knock_out",
            found,
            _base(self.clean),
            lambda i, layer, head: self.clean.cut(i, layer, head, self.keys(i)),
        )

    def patching(self) -> None:
        from icl_kernel_lens import patch_labels

        found = patch_labels(
            self.model,
            clean=self.fresh.set(),
            corrupted=self.fresh.set(exchanged=True),
            activation="attention_edge",
            heads=self.heads() or None,
            offsets=(0,),
            progress=False,
        )
        _ = self.clean.layers
        self.effects(
            "edge",
            found,
            _base(self.corrupted),
            lambda i, layer, head: self.corrupted.edge(i, self.clean, layer, head, self.keys(i)),
        )


def _base(reference: Reference) -> Tensor:
    return torch.stack([relative(logits) for logits in reference.answers()])


def _size(pairs: list[Pair]) -> float:
    return max(float(expected.abs().max()) for _, expected in pairs)


def _loaded(entry: Entry, kind: str) -> Any:
    """A second copy of the model, under a class of TransformerLens's, by the library."""
    from icl_kernel_lens import load_model
    from icl_kernel_lens.models.load import bridge_from_hf

    if kind == BRIDGE:
        return bridge_from_hf(hf_model(entry))
    with tempfile.TemporaryDirectory(prefix="tiny-") as folder:
        hf_model(entry).save_pretrained(folder)
        return load_model(folder, device="cpu", backend="hooked")


def _alone(entry: Entry, kind: str, reference: Reference) -> dict[str, str | float]:
    """What TransformerLens does with this model without the library: logits beside Hugging Face's, over their spread."""
    if kind != BRIDGE:
        return {}
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    hf = hf_model(entry)
    try:
        bridge = build_bridge_from_module(
            hf, type(hf).__name__, hf_config=hf.config, tokenizer=None, model_name="tiny"
        )
    except Exception as error:
        return {"build": _said(error)}
    tokens, theirs = reference.prompts[0][None], reference.seen[0].logits
    ways = {
        "forward": {},
        "forward without a cache": {"use_cache": False},
        "forward with a mask of ones": {"attention_mask": torch.ones_like(tokens)},
    }
    found: dict[str, str | float] = {}
    for way, options in ways.items():
        try:
            with torch.no_grad():
                logits = bridge(tokens, return_type="logits", **options)[0].float()
        except Exception as error:
            found[way] = _said(error)
        else:
            found[way] = float((logits - theirs).abs().max() / theirs.std())
    return found


def _not_built(result: dict[str, Any]) -> dict[str, Any]:
    """A refusal or an exception that TransformerLens raises alone is none of the library's."""
    alone = result.get("transformer_lens", {})
    why = next((alone[way] for way in ("build", "forward") if isinstance(alone.get(way), str)), None)
    answers = result["parts"].get("answers", {})
    hooked = result["kind"] == HOOKED and answers.get("code") == "model-backend"
    if why and answers.get("outcome") in ("refused", "crashed"):
        return result | {"outcome": "not built", "parts": {}, "message": f"TransformerLens: {why}"}
    if hooked and "logits differ" not in answers["message"]:
        return result | {"outcome": "not built", "parts": {}, "message": answers["message"]}
    return result


# ---- every name, one process each


def _child(name: str, kind: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    pipe.send(quietly(name, kind))


def quietly(name: str, kind: str) -> dict[str, Any]:
    """Measure without warnings; an exception of this file's own is an outcome too, so that it is seen."""
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    try:
        return _not_built(measure(name, kind))
    except Exception as error:
        entry = ENTRIES[name]
        found = {"outcome": "not compared", "parts": {}, "message": f"the comparison failed: {_said(error)}"}
        return {"name": name, "kind": kind, "model": entry.model, "about": entry.about, **found}


def run_all(names: list[tuple[str, str]], jobs: int, done: Callable[[dict[str, Any]], None]) -> None:
    """Measure each in a process forked from this one, which has imported everything already."""
    import transformer_lens  # noqa: F401
    import transformers  # noqa: F401

    import icl_kernel_lens

    for public in icl_kernel_lens.__all__:
        getattr(icl_kernel_lens, public)
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    waiting, running = list(names), []
    while waiting or running:
        while waiting and len(running) < jobs:
            name, kind = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(name, kind, sender))
            process.start()
            sender.close()
            running.append((name, kind, process, receiver, time.perf_counter() + SECONDS))
        time.sleep(0.05)
        for item in list(running):
            name, kind, process, receiver, until = item
            found = None
            if receiver.poll():
                try:
                    found = receiver.recv()
                except EOFError:
                    process.join()
                    found = {"outcome": "crashed", "message": f"the process ended with {process.exitcode}"}
            elif time.perf_counter() > until:
                process.kill()
                found = {"outcome": "crashed", "message": f"no answer within {SECONDS} seconds"}
            if found is None:
                continue
            process.join()
            running.remove(item)
            entry = ENTRIES[name]
            done(
                {"name": name, "kind": kind, "model": entry.model, "about": entry.about, "parts": {}, **found}
            )


# ---- tables


def cell(result: dict[str, Any] | None) -> str:
    """One outcome in a table."""
    if result is None:
        return ""
    outcome, parts = result["outcome"], result["parts"]
    if outcome in ("exact", "wrong"):
        worst = max(
            (part["difference"] for part in parts.values() if "difference" in part), default=float("nan")
        )
        which = [name for name, part in parts.items() if part["outcome"] == outcome]
        return f"exact, {worst:.0e}" if outcome == "exact" else f"**wrong**: {', '.join(which)}, {worst:.0e}"
    if outcome == "refused":
        exact = [name for name, part in parts.items() if part["outcome"] == "exact"]
        codes = sorted({f"`{part['code']}`" for part in parts.values() if part["outcome"] == "refused"})
        return f"refused {', '.join(codes)}" + (f" ({', '.join(exact)} exact)" if exact else "")
    return f"**{outcome}**" if outcome == "crashed" else outcome


def why(result: dict[str, Any]) -> str:
    """The first sentence of what was said."""
    said = [part["message"] for part in result["parts"].values() if part.get("message")]
    text = result.get("message") or next(iter(dict.fromkeys(said)), "")
    text = " ".join(text.split()).replace("|", "\\|")
    text = text.replace(result["model"], "its class").replace("unnamed", "this model")
    first = text.split(". ")[0]
    first = first if len(first) < 300 else first[:297] + "…"
    notes: list[str] = []
    codes = {part.get("code") for part in result["parts"].values()}
    attending = result.get("reference", {}).get("attending")
    if "no-attention" in codes and attending:
        notes.append(f"but Hugging Face's code attends in layers {attending}")
    alone = result.get("transformer_lens", {})
    for way, difference in alone.items() if result["outcome"] != "not built" else ():
        if isinstance(difference, str):
            notes.append(f"TransformerLens alone, {way}: {difference}")
        elif difference > 1e-3:
            notes.append(
                f"TransformerLens alone, {way}: logits {difference:.1e} from Hugging Face's, over their spread"
            )
    return ". ".join([*([first] if first else []), *(f"*{note}*" for note in notes[:1])])


def counts(results: dict[str, dict[str, Any]], names: Iterable[str]) -> Counter[str]:
    return Counter(results[name]["outcome"] for name in names if name in results)


def tables(records: dict[str, Any]) -> list[Table]:
    """Counts, every model, and what was said where the outcome is not exact."""
    columns = {
        f"{release}, {kind}": record["results"][kind]
        for release, record in records.items()
        for kind in (BRIDGE, HOOKED)
        if record["results"].get(kind)
    }
    rows = [
        [
            title + note,
            *(counts(found, names)[word] or "" for word in ORDER),
            sum(counts(found, names).values()),
        ]
        for names, note in ((CONFIGS, ""), (ADDED, ", added later"))
        for title, found in columns.items()
        if counts(found, names)
    ]
    summary = Table("Counts", ["TransformerLens", *ORDER, "of"], rows)
    every = Table(
        "Every model",
        ["name", "attention", *columns],
        [
            [
                f"{name}{' +' if name in ADDED else ''}",
                entry.about,
                *(cell(found.get(name)) for found in columns.values()),
            ]
            for name, entry in ENTRIES.items()
            if any(name in found for found in columns.values())
        ],
        "The number is the largest difference in any part, over the largest number compared. +: added later.",
    )
    said = []
    for title, found in columns.items():
        lines: dict[tuple[str, str], list[str]] = {}
        for name in ENTRIES:
            if name in found and found[name]["outcome"] != "exact":
                lines.setdefault((cell(found[name]), why(found[name])), []).append(name)
        rows = [[", ".join(names), outcome, text] for (outcome, text), names in lines.items()]
        said.append(
            Table(f"Not exact: {title}", ["names", "outcome", "what was said, its first sentence"], rows)
        )
    return [summary, every, *said]


DOCS = """# Which models are read and changed exactly

Drawn from a run by `python -m benchmarks.architectures --docs docs/models.md`; do not edit. Every decoder-only language
model in the registry of TransformerLens 4.3.0 whose code is in transformers, and variants within families, {count} in all, is
built tiny with random weights (`benchmarks/architecture_configs.py`) and compared with Hugging Face's own code alone, on a
second copy that neither TransformerLens nor this package touches (`benchmarks/huggingface_edits.py`): the answers, every
head's attention row, both again of prompts that share demonstrations, knock-outs of the labels, and attention edges from
another run. Prompts have different lengths, and are longer than every sliding window. What is compared and how: top of
`benchmarks/architectures.py`.

- **exact**: all five parts agree to 1e-4 of the largest number.
- **refused**: an error with a code in place of numbers. The model does something to its attention that cannot be read or
  changed exactly, or what TransformerLens shows of it is not what it computes; a part named "exact" beside it works.
- **not built**: TransformerLens alone cannot hold or run the model.
- **not compared**: the reference sees no attention weights (recurrent models), or several in one layer.
- **wrong**: numbers that are not the model's. **crashed**: an error without a code, or no answer. Whatever the cause, ours to catch.

Does not show: that a trained model in half precision is read as exactly; verification measures that on the model in hand,
whatever its name.

{rows}

{environments}
"""


def write_docs(path: Path, folder: Path) -> None:
    """All results in the folder as one page."""
    records = {}
    for file in sorted(folder.glob("architectures-*.json"), reverse=True):
        record = json.loads(file.read_text(encoding="utf-8"))
        records[record["environment"]["transformer-lens"]] = record
    kept = ("date", "python", "torch", "transformers", "transformer-lens", "icl-kernel-lens")
    environments = "\n".join(
        "- " + ", ".join(f"{key} {record['environment'][key]}" for key in kept) for record in records.values()
    )
    exact = [
        result["rows_from"]
        for record in records.values()
        for found in record["results"].values()
        for result in found.values()
        if result["outcome"] == "exact"
    ]
    own = sum(source == "output_attentions" for source in exact)
    rows = (
        f"In {own} of {len(exact)} exact outcomes, the weights that were watched equal Hugging Face's own `output_attentions` "
        "to 1e-6, on the first prompt."
    )
    text = DOCS.format(count=len(CONFIGS), environments=environments, rows=rows)
    drawn = [table.markdown().replace("### ", "## ", 1) for table in tables(records)]
    path.write_text("\n\n".join([text.strip(), *drawn]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--one", metavar="NAME", help="measure one name in this process and print a line of JSON"
    )
    parser.add_argument(
        "--kind", choices=[BRIDGE, HOOKED], help="with --one: default TransformerBridge; else: both"
    )
    parser.add_argument("--names", nargs="+", default=list(ENTRIES), help="default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--again", action="store_true", help="measure also what the folder has already")
    parser.add_argument(
        "--out", type=Path, help="folder of architectures-<TransformerLens's version>.json; a run goes on"
    )
    parser.add_argument(
        "--docs", type=Path, help="write the page from the results in --out or benchmarks/results, and end"
    )
    given = parser.parse_args()
    folder = given.out or Path(__file__).parent / "results"
    if given.docs:
        write_docs(given.docs, folder)
        return
    if given.one:
        torch.set_num_threads(1)
        print(json.dumps(quietly(given.one, given.kind or BRIDGE), ensure_ascii=False))
        return
    _every(given, folder)


def _every(given: argparse.Namespace, folder: Path) -> None:
    from icl_kernel_lens.models.transformer_lens_adapters import transformer_lens_classes

    release = version("transformer-lens")
    path = folder / f"architectures-{release}.json"
    record: dict[str, Any] = {"results": {}}
    if path.exists() and given.out:
        record = json.loads(path.read_text(encoding="utf-8"))
    record["environment"] = environment()
    has_hooked = transformer_lens_classes()[0] is not None
    kinds = [given.kind] if given.kind else [BRIDGE, *([HOOKED] if has_hooked else [])]
    there = record["results"]
    todo = [
        (name, kind)
        for kind in kinds
        for name in given.names
        if given.again or name not in there.get(kind, {})
    ]

    def done(result: dict[str, Any]) -> None:
        there.setdefault(result["kind"], {})[result["name"]] = result
        print(f"{result['name']:22} {result['kind']:18} {cell(result)}  {why(result)[:120]}", flush=True)
        if given.out:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    run_all(todo, given.jobs, done)
    for table in tables({release: record}):
        print(table.text(), end="\n\n")


if __name__ == "__main__":
    main()
