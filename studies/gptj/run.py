"""Han et al.'s set-up on GPT-J-6B: does a head chosen on 400 prompts vote as the model answers on 300 others, and where is it?

    python -m studies.gptj.run                   the paper's six tasks from the Hugging Face Hub, on a GPU of 16 GB or more
    python -m studies.gptj.run --data FOLDER     from NAME.train.jsonl and NAME.test.jsonl in a folder
    python -m studies.gptj.run --tiny            a small random model and a bundled task, without network or GPU

Of each task 700 test inputs, each behind 16 demonstrations of its own (section 5.2: one prompt is sampled for each). The first
400 choose a head, for each pooling by two rules; the other 300 say how often it votes as the model answers (section 5.5):

    span_max, highest    the paper's: the largest weight in each demonstration, the highest agreement with the answers
    label, surest        ours: the weight on each label, the most surely above the strongest simple explanation

and both poolings with both rules between them. Two bands of layers stand beside the paper's 18–21:

    votes     the smallest run of layers that holds 90 % of what the heads chosen on the 400 agree more often than their
              strongest control does, on the 300; chosen are all that surely do so by 5 percentage points
    causes    that of `locate_heads`, by the effects of its located heads; it halves all 700 prompts itself, 350 and 350, and
              crosses demonstrations and test inputs of each half for what the model's own kernel is

The paper states neither its template, nor label words, nor the number of demonstrations: these are ours. A finished task is not
run again; one that was cut short goes on from where it was. Does not show: what other templates, seeds and numbers of
demonstrations give; what float16 changes.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import icl_kernel_lens as ikl
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.locate.conditions import EACH
from icl_kernel_lens.locate.measure import find_band
from icl_kernel_lens.prompts.crossed import check_crossed
from icl_kernel_lens.results.criteria import Band
from icl_kernel_lens.results.run_info import versions
from studies.fetch import cache_folder
from studies.gptj.random_weights import SMALL, write_folder
from studies.sources import add_data_option, find_task

MODEL = "EleutherAI/gpt-j-6b"
DTYPE = torch.float16
TASKS = ("sst2", "mnli", "rotten_tomatoes", "tweet_eval_hate", "tweet_eval_irony", "tweet_eval_offensive")
"""The paper's."""
PAPER_BAND = (
    "layers 18–21 (section 5.2), 16–21 (caption of Figure 3); whether counted from 0 or 1 is not stated"
)
PAPER = {
    "sst2": (0.805, 0.797, 0.750),
    "mnli": (0.383, 0.597, 0.360),
    "rotten_tomatoes": (0.671, 0.683, 0.527),
    "tweet_eval_hate": (0.539, 0.713, 0.587),
    "tweet_eval_irony": (0.519, 0.722, 0.522),
    "tweet_eval_offensive": (0.542, 0.753, 0.513),
}
"""Its Table 2: accuracy of the model, agreement of the chosen head with the model's answer, and with the truth."""
RESULTS = Path(__file__).parent / "results"

Rule = Literal["highest", "surest"]
RULES: Mapping[Rule, Callable[[ikl.HeadScores], ikl.HeadRef]] = {
    "highest": lambda vote: ikl.HeadRef(
        *divmod(int(vote.mean().nan_to_num(nan=-1).argmax()), vote.values.shape[2])
    ),
    "surest": lambda vote: vote.best(),
}
"""How a head is chosen: the highest agreement, or the one most surely above its strongest control."""
POOLINGS: tuple[Literal["span_max", "label"], ...] = ("span_max", "label")


@dataclass(frozen=True)
class Setting:
    """What the results of a task depend on."""

    model: str = MODEL
    dtype: str = str(DTYPE).removeprefix("torch.")
    demos: int = 16
    choose: int = 400
    report: int = 300
    seed: int = 0

    @property
    def digest(self) -> str:
        """Six digits, for the name of a folder."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:6]


def load(model: str) -> Any:
    """The model in float16 under a TransformerBridge, which is built into the weights that are there.

    A HookedTransformer would be a second copy of them on the device. Where accelerate is installed and there is one GPU, each
    weight goes there as it is read, and the host never holds the model.

    Raises: SystemExit: no GPU for GPT-J itself, or one that it does not fit on.
    """
    if model == MODEL and not torch.cuda.is_available():
        raise SystemExit(
            f"{MODEL} needs a GPU of 16 GB or more, and torch.cuda.is_available() is False. Try the code with --tiny, or "
            "another model with --model."
        )
    direct = torch.cuda.device_count() == 1 and find_spec("accelerate") is not None
    loaded = ikl.load_model(model, dtype=DTYPE, backend="bridge", device="auto" if direct else None)
    places = {parameter.device.type for parameter in loaded.parameters()}
    if len(places) > 1:
        raise SystemExit(
            f"all weights must fit on the GPU; some were left on {', '.join(sorted(places - {'cuda'}))}. Free its memory "
            "(nvidia-smi shows who holds it), or use a larger one."
        )
    return loaded


def measured(
    task: str, model: Any, setting: Setting, data: Path | None, work: Path, out: Path
) -> dict[str, Any]:
    """Runs one task; what becomes its json file. Tables and figures go into the folder."""
    count = setting.choose + setting.report
    prompts = find_task(task, data).prompts(model, demos=setting.demos, count=count, seed=setting.seed)
    evidence = ikl.read(model, prompts, checkpoint=work / "read")
    accuracy = ikl.in_context_accuracy(model, prompts, evidence=evidence, checkpoint=work / "accuracy")
    parts = part(evidence, range(setting.choose)), part(evidence, range(setting.choose, count))
    chosen, bands, heads = [], {}, []
    for pooling in POOLINGS:
        choosing, reporting = (ikl.head_vote(one, pooling=pooling) for one in parts)
        truth = ikl.head_vote(parts[1], pooling=pooling, against="truth")
        chosen += [
            {"pooling": pooling, "rule": rule, **reported(choose(choosing), choosing, reporting, truth)}
            for rule, choose in RULES.items()
        ]
        sure = surely_votes(choosing)
        bands[f"votes, {pooling}"] = vote_band(reporting, sure), int(sure.sum())
        heads.append(both(choosing, reporting).assign(pooling=pooling))
        reporting.figure().save(out / f"{task}-{pooling}.png")
    located = to_locate(task, model, prompts, setting, data)
    known = {"evidence": evidence, "accuracy": accuracy} if located is prompts else {}
    ranking = ikl.locate_heads(model, located, **known, seed=setting.seed, checkpoint=work / "locate")
    bands["causes"] = ranking.band, len(ranking.heads)
    ranking.figure().save(out / f"{task}-located.png")
    ranking.notable().to_csv(out / f"{task}-located.csv", index=False, float_format="%.4f")
    pd.concat(heads).to_csv(out / f"{task}-votes.csv", index=False, float_format="%.4f")
    mean, span = accuracy.mean()["demonstrations"], accuracy.interval()["demonstrations"]
    return {
        "verdict": accuracy.verdict(),
        "accuracy": mean,
        "accuracy_low": span[0],
        "accuracy_high": span[1],
        "chosen": chosen,
        "bands": [
            {
                "band": name,
                "heads": found,
                **(asdict(band) | {"where": band.where} if band else {"where": "none"}),
            }
            for name, (band, found) in bands.items()
        ],
        "kernel_heads": [str(head) for head in ranking.heads],
        "edges": ranking.settings["edges"],
        "longest_prompt": int(prompts.lengths.max()),
        "data": prompts.info.origin,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def to_locate(
    task: str, model: Any, prompts: ikl.PromptSet, setting: Setting, data: Path | None
) -> ikl.PromptSet:
    """The same prompts; where label words differ from prompt to prompt, as many others, of which `EACH` share their demonstrations."""
    try:
        check_crossed(prompts)
    except PromptError:
        drawn = find_task(task, data)
        sets = len(prompts) // EACH
        return drawn.prompts(model, demos=setting.demos, count=len(prompts), sets=sets, seed=setting.seed)
    return prompts


def part(evidence: ikl.Evidence, numbers: Sequence[int]) -> ikl.Evidence:
    """The evidence of some prompts, to be scored; the averaged row (`profile`) stays that of all."""
    at = list(numbers)
    return replace(
        evidence,
        prompts=evidence.prompts.select(at),
        weights={pooling: weights[at] for pooling, weights in evidence.weights.items()},
        sink=evidence.sink[at],
        label_scores=evidence.label_scores[at],
        model_tokens=evidence.model_tokens[at],
        rows=evidence.rows[:0],
    )


def reported(
    head: ikl.HeadRef, choosing: ikl.HeadScores, reporting: ikl.HeadScores, truth: ikl.HeadScores
) -> dict[str, Any]:
    """What the reporting prompts say of a head, beside its agreement where it was chosen."""
    mine, right = (one.table().set_index("head").loc[str(head)] for one in (reporting, truth))
    found = {
        "head": str(head),
        "agreement_where_chosen": float(choosing.mean()[head.layer, head.head]),
        "agreement": mine["head_vote"],
        "strongest_control": mine["strongest_control"],
        "truth": right["head_vote"],
        "truth_low": right["low"],
        "truth_high": right["high"],
    }
    columns = ("low", "high", "control", "above_control", "above_control_low", "kappa", "label_attention")
    return found | {name: mine[name] for name in columns}


def both(choosing: ikl.HeadScores, reporting: ikl.HeadScores) -> pd.DataFrame:
    """A row a head: its agreement on the choosing prompts, and the table of the reporting ones."""
    mean = pd.Series({str(ikl.HeadRef(*at)): float(choosing.mean()[at]) for at in _heads(choosing)})
    table = reporting.table()
    table.insert(1, "agreement_where_chosen", table["head"].map(mean))
    return table


def _heads(vote: ikl.HeadScores) -> list[tuple[int, int]]:
    return [(layer, head) for layer in range(vote.values.shape[1]) for head in range(vote.values.shape[2])]


def surely_votes(vote: ikl.HeadScores) -> Bool[Tensor, "layer head"]:
    """Heads that read labels and agree oftener than their strongest control, surely by `Criteria.margin`."""
    criteria = ikl.Criteria()
    return (vote.surely_above() > criteria.margin) & vote.reads_labels(criteria.label_attention)


def vote_band(vote: ikl.HeadScores, chosen: Bool[Tensor, "layer head"]) -> Band | None:
    """The band of how much oftener the chosen heads agree than their strongest controls, summed over each layer."""
    excess = above_control(vote).masked_fill(~chosen, 0).sum(2)
    return find_band(excess, torch.ones(len(excess)), vote.demo_set, ikl.Criteria().band_share)


def above_control(vote: ikl.HeadScores) -> Float[Tensor, "prompt layer head"]:
    """Per prompt, each head's agreement minus that of its strongest control."""
    controls = list(vote.controls)
    which = torch.tensor([[controls.index(name) for name in row] for row in vote.strongest_control()[1]])
    values = torch.stack([control.expand_as(vote.values) for control in vote.controls.values()])
    return vote.values - values.gather(0, which.expand(1, *vote.values.shape))[0]


def says(task: str, row: Mapping[str, Any]) -> str:
    """A task's results in a few lines, beside the paper's."""
    paper = PAPER.get(task)
    lines = [f"{task}: {row['verdict']}", f"  accuracy {row['accuracy']:.1%}" + _paper(paper, 0)]
    for one in row["chosen"]:
        lines.append(
            f"  {one['pooling']}, {one['rule']}: {one['head']}, {one['agreement_where_chosen']:.1%} where it was chosen, "
            f"{one['agreement']:.1%} [{one['low']:.1%}, {one['high']:.1%}] of the others{_paper(paper, 1)}; its strongest control "
            f"({one['strongest_control']}) {one['control']:.1%}; right in {one['truth']:.1%}{_paper(paper, 2)}"
        )
    for one in row["bands"]:
        lines.append(f"  band by {one['band']} (heads: {one['heads']}): {one['where']}{_ends(one)}")
    return "\n".join([*lines, f"  the paper's band: {PAPER_BAND}"])


def _ends(band: Mapping[str, Any]) -> str:
    if "first" not in band:
        return ""
    (a, b), (c, d) = band["first_interval"], band["last_interval"]
    return f", counted from 0; intervals: first {a}–{b}, last {c}–{d}"


def _paper(numbers: tuple[float, ...] | None, at: int) -> str:
    return f" (paper: {numbers[at]:.1%})" if numbers else ""


def write_tables(out: Path) -> None:
    """chosen.csv and bands.csv, from the json files of all finished tasks."""
    for name in ("chosen", "bands"):
        rows = [
            {"task": path.stem} | one
            for path in sorted(out.glob("*.json"))
            for one in json.loads(path.read_text())[name]
        ]
        pd.DataFrame(rows).to_csv(out / f"{name}.csv", index=False, float_format="%.4f")


def finished(out: Path, task: str, setting: Setting) -> dict[str, Any] | None:
    """What is there of a task; None where it is still to be run.

    Raises: SystemExit: it is of another model or setting.
    """
    path = out / f"{task}.json"
    if not path.exists():
        return None
    row = json.loads(path.read_text())
    if row["setting"] != asdict(setting):
        raise SystemExit(
            f"a folder holds the results of one model and one setting; {path} is of {row['setting']}, and now it is "
            f"{asdict(setting)}. Give another folder with --out."
        )
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_data_option(parser)
    parser.add_argument("--model", help=f"a folder, a name on the Hub, …; default: {MODEL}")
    parser.add_argument("--out", type=Path, help=f"folder of the results; default: {RESULTS}")
    parser.add_argument("--only", nargs="+", help="names of tasks, of any that load_task knows; default: all")
    parser.add_argument("--demos", type=int, help="demonstrations of a prompt; default: 16")
    parser.add_argument("--prompts", type=int, nargs=2, metavar=("CHOOSE", "REPORT"), help="default: 400 300")
    parser.add_argument("--list", action="store_true", help="print the tasks and whether they are finished")
    parser.add_argument(
        "--tiny", action="store_true", help="a small random model on a bundled task; says nothing about GPT-J"
    )
    given = parser.parse_args(arguments)
    place = cache_folder() / "studies" / "gptj"
    tasks = given.only or (["opinions"] if given.tiny else TASKS)
    choose, report = given.prompts or ((40, 30) if given.tiny else (400, 300))
    out = given.out or (place / "tiny-results" if given.tiny else RESULTS)
    name = given.model or (str(place / "tiny-model") if given.tiny else MODEL)
    setting = Setting(name, demos=given.demos or (4 if given.tiny else 16), choose=choose, report=report)
    rows = {task: finished(out, task, setting) for task in tasks}
    if given.list:
        print("\n".join(f"{task} {'finished' if row else ''}".strip() for task, row in rows.items()))
        return
    out.mkdir(parents=True, exist_ok=True)
    model, loading = None, None
    for task, row in rows.items():
        if row is None:
            if model is None:
                if given.tiny and not given.model:
                    write_folder(Path(name), SMALL, torch.device("cpu"), DTYPE, spread=0.2)
                model, loading = load(name), peak_memory()
            work = place / f"{task}-{setting.digest}"
            row = run_task(task, model, setting, given.data, work, out, peak_memory_loading=loading)
        print(says(task, row), end="\n\n", flush=True)
    write_tables(out)
    print(out)


def run_task(
    task: str, model: Any, setting: Setting, data: Path | None, work: Path, out: Path, **more: Any
) -> dict[str, Any]:
    """Measures one task, and writes its json file last: then it is finished."""
    peak_memory()
    start = time.perf_counter()
    row = measured(task, model, setting, data, work, out) | {
        "seconds": time.perf_counter() - start,
        "peak_memory": peak_memory(),
        **more,
        "setting": asdict(setting),
        "date": datetime.date.today().isoformat(),
        **versions(),
    }
    (out / f"{task}.json").write_text(json.dumps(row, indent=1, default=float) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    return row


def peak_memory() -> int | None:
    """Bytes of the GPU that were allocated at most since the last call; None without one."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


if __name__ == "__main__":
    main()
