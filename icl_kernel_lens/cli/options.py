"""The options that commands share, each declared once: what runs the model on which prompts, and where results go.

Nothing here imports torch, so that `--help` is there at once. Words that the library declares beside code that does are
repeated, and a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from icl_kernel_lens.errors import ResultError, TaskError

if TYPE_CHECKING:
    from icl_kernel_lens.prompts.promptset import PromptSet
    from icl_kernel_lens.run.processes import Processes
    from icl_kernel_lens.tasks.task import Task
    from icl_kernel_lens.tasks.topics import TopicsTask

Activation = Literal[
    "residual",
    "attention_output",
    "mlp_output",
    "head_output",
    "query",
    "key",
    "value",
    "attention_edge",
]
Method = Literal["exact", "attribution"]
Direction = Literal["denoise", "noise"]
Edges = Literal["answer_reads_labels", "answer_reads_text", "label_reads_text"]
World = Literal["han2025", "block", "leaky", "short", "long", "wide", "sparse"]


@dataclass(frozen=True)
class Target:
    """Where results go.

    Args:
        out: Folder for the results; it must be empty, absent, or hold results of the same run.
        overwrite: Replace what OUT holds of another model, task or setting, finished or interrupted.
    """

    out: Path
    overwrite: bool = False


@dataclass(frozen=True)
class Source:
    """What every command that runs a model needs: the model, the task, and prompts of the one for the other.

    Args:
        model: "mini" (bundled), a local folder in Hugging Face format (safetensors or pytorch_model.bin), a .gguf file,
            a folder of a PEFT adapter, or a name on the Hugging Face Hub.
        task: "topics" (bundled, for "mini"), "opinions", "subjects" or "questions" (bundled, in English),
            a file (jsonl, csv, tsv, parquet), or a name such as sst2, mnli, ag_news. Of a single file, half of the rows
            feed the demonstrations and half are test inputs; NAME.train.jsonl brings NAME.test.jsonl along.
        demos: Demonstrations in each prompt.
        prompts: How many prompts, each with its own test input.
        sets: Share this many demonstration sets evenly among the prompts; 0 or None: fresh ones for each prompt.
        balanced: Show every class equally often (to within one).
        seed: Seed of the prompts and of all else that is drawn; the same seed gives the same prompts everywhere.
        prepend_bos: True or False to force a beginning-of-sequence token; default: what the tokenizer does.
        template: How a demonstration is written, for example "Review: {text}\\nSentiment: {label}"; chat puts the
            task's own template into the chat template of the model's tokenizer, a turn for each demonstration and one
            for its label, chat-one-turn all demonstrations into one.
        label_words: One word per class, in the order of the classes.
        text_fields: Columns of a task file that hold the text (or two texts); default: text (and text2).
        label_field: Column of a task file that holds the label.
        backend: TransformerLens class; auto takes HookedTransformer where it equals Hugging Face.
        device: Such as cpu, cuda, or auto (a model over all GPUs); default: cuda where there is one.
        dtype: Default: as stored.
    """

    model: str = "mini"
    task: str = "topics"
    demos: int = 16
    prompts: int = 200
    sets: int | None = None
    balanced: bool = False
    seed: int = 0
    prepend_bos: Annotated[bool | None, tyro.conf.FlagConversionOff] = None
    template: str | None = None
    label_words: tuple[str, ...] = ()
    text_fields: tuple[str, ...] = ()
    label_field: str = "label"
    backend: Literal["auto", "hooked", "bridge"] = "auto"
    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded."""
        if self.demos < 1:
            raise ResultError(
                f"a vote needs demonstrations; --demos must be at least 1, got {self.demos}.",
                code="too-few-demonstrations",
            )

    def load(self, group: Processes, **more: Any) -> tuple[Any, Task | TopicsTask, PromptSet]:
        """Load the model, on this process's own device where there are several, and the task; and draw the prompts."""
        import torch

        from icl_kernel_lens.models.load import load_model, load_record
        from icl_kernel_lens.prompts.template import Template
        from icl_kernel_lens.tasks.load import load_task
        from icl_kernel_lens.tasks.task import Task

        chat = self.template in ("chat", "chat-one-turn")
        task = load_task(
            self.task,
            template=self.template.replace("\\n", "\n") if self.template and not chat else None,
            label_words=self.label_words or None,
            text_fields=self.text_fields or None,
            label_field=self.label_field,
        )
        if chat and not isinstance(task, Task):
            raise TaskError(
                f"{self.task!r} brings its own template, which cannot be put into turns. Leave --template out, or "
                "take another task.",
                code="task-fixed",
            )
        device = str(group.device) if self.device is None and group.size > 1 else self.device
        dtype = getattr(torch, self.dtype) if self.dtype else None
        model = load_model(self.model, device, dtype, self.backend)
        record = load_record(model)
        if isinstance(task, Task) and chat:
            written = Template.chat(model.tokenizer, task.template, turns=self.template == "chat")
            task = replace(task, template=written)
        say = print if group.first else lambda *_: None
        say(task)
        say(f"{self.model}: {type(model).__name__}, because {record.why if record else 'it was given'}.")
        if record and record.quantisation:
            say(f"Its weights were quantised: {record.quantisation}.")
        prompts = self.draw(model, task, **more)
        say(prompts)
        return model, task, prompts

    def draw(self, model: Any, task: Task | TopicsTask, **more: Any) -> PromptSet:
        """Draw prompts of the task for the model; `more` (the seed, for example) comes before what is here."""
        own = {
            "demos": self.demos,
            "count": self.prompts,
            "seed": self.seed,
            "sets": self.sets or None,
            "balanced": self.balanced,
            "prepend_bos": self.prepend_bos,
        }
        return task.prompts(model, **(own | more))

    def identity(self, model: Any, prompts: PromptSet, **settings: Any) -> dict[str, str]:
        """What decides every number of a run, in words: two runs with the same give the same results."""
        from icl_kernel_lens.models.adapter import as_adapter
        from icl_kernel_lens.models.load import load_record
        from icl_kernel_lens.run.checkpoint import fingerprint

        template, record = prompts.info.template, load_record(model)
        stored = {"quantisation": record.quantisation} if record and record.quantisation else {}
        return stored | {
            "task": prompts.info.task,
            "template": repr(template.demo) if template else "token ids",
            **fingerprint(as_adapter(model), prompts, settings),
        }


To = Annotated[Target, tyro.conf.arg(name="")]
From = Annotated[Source, tyro.conf.arg(name="")]
"""Their options without a prefix."""


def check_top(top: int) -> None:
    """Refuse a number of rows that is none."""
    if top < 0:
        raise ResultError(f"--top is how many rows to print, at least 0; got {top}.", code="number-range")
