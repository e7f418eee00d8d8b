"""Rankings and curves made by hand: every number is known, and no model runs."""

from __future__ import annotations

import torch

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.locate.measure import find_band
from icl_kernel_lens.prompts.promptset import PromptInfo
from icl_kernel_lens.results.ablation_curves import AblationCurves
from icl_kernel_lens.results.criteria import KERNEL_CLASSES, Criteria
from icl_kernel_lens.results.head_ranking import CHOOSING, COLUMNS, SELECTED, HeadRanking
from icl_kernel_lens.results.joint_effects import JointEffect
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.results.task_accuracy import TaskAccuracy

PROMPTS, SETS = 40, 30


def run_info(layers, heads, model="a-model", task="a-task"):
    return RunInfo(
        model=model, kind="HookedTransformer", source=None, revision=None, loaded_because=None, dtype="float32",
        device="cpu", layers=layers, heads=heads, prompts=PromptInfo(task=task, demos=4, seed=3),
        score_on="first_token", versions={},
    )  # fmt: skip


def accuracy(*, before=0.5, after=0.9, last=0.5, commonest=0.5, prompts=PROMPTS, sets=SETS, run=None):
    """Accuracies without demonstrations and with them, and how many of the answers the two rules give."""

    def share(rate):
        return (torch.arange(prompts) < round(rate * prompts)).float()

    return TaskAccuracy(
        correct={
            "demonstrations": share(after),
            "permuted_labels": share(0.4),
            "no_demonstrations": share(before),
            "majority": share(0.45),
        },
        rules={"last_label": share(last), "commonest_answer": share(commonest)},
        demo_set=torch.arange(prompts) % sets,
        run=run or run_info(2, 2),
        digest="of the prompts",
        reasons={},
    )


CARRIED = {"kernel head": 0.3, "pair kernel": 0.2, "driver": -0.15, "reads labels": 0.2}
"""The share of the label part that a head of a class carries; of all others, next to nothing."""
FOLLOWS = {"kernel head": 0.6, "pair kernel": 0.5, "shadow": 0.4, "echo": 0.35}
"""The fit of a head of a class to the model's own kernel."""


def ranking(
    layers=4, heads=3, classes=None, measured=None, *, model="a-model", task="a-task", control="label_prior"
):
    """`classes` by (layer, head), the rest neither; `measured`: the heads cut, and held against the model's own kernel, in the
    reporting half (default: those)."""
    # The influence's maker takes run_info from here.
    from results.influence_made import made_influence

    classes = {(2, 1): "kernel head", (3, 0): "shadow"} if classes is None else classes
    cut = torch.zeros(layers, heads, dtype=torch.bool)
    for at in classes if measured is None else measured:
        cut[at] = True
    generator = torch.Generator().manual_seed(layers * heads)
    columns = {name: torch.full((layers, heads), torch.nan) for name in COLUMNS}
    columns["control"] = torch.full((layers, heads), 0.5)
    columns["margin"] = 0.1 * torch.randn(layers, heads, generator=generator)
    drop = 0.02 * torch.randn(PROMPTS, layers, heads, generator=generator)
    transport, fit = 0.01 * torch.randn(2, layers, heads, generator=generator)
    located = torch.zeros(layers, heads, dtype=torch.bool)
    for at, name in classes.items():
        transport[at] += CARRIED.get(name, 0.0)
        fit[at] += FOLLOWS.get(name, 0.0)
        if name in KERNEL_CLASSES:
            located[at], columns["margin"][at] = True, 0.4
            drop[:, at[0], at[1]] += 0.3
    columns["agreement"] = columns["control"] + columns["margin"]
    drop = drop.masked_fill(~cut, torch.nan)
    columns["logit_diff_drop"] = drop.mean(0)
    columns["transport"], columns["fit"] = (x.masked_fill(~cut, torch.nan) for x in (transport, fit))
    for name in ("margin", "logit_diff_drop", "transport", "fit"):
        columns[f"{name}_low"], columns[f"{name}_high"] = columns[name] - 0.05, columns[name] + 0.04
    base, sets = torch.ones(PROMPTS), torch.arange(PROMPTS) % SETS
    refs = [HeadRef(layer, head) for layer in range(layers) for head in range(heads)]
    choosing = {name: torch.full((layers, heads), torch.nan) for name in CHOOSING}
    choosing["fit"] = fit + 0.02
    return HeadRanking(
        classes={ref: classes.get(ref, "neither") for ref in refs},
        band=find_band(drop.masked_fill(~located, 0).sum(2), base, sets, 0.9) if located.any() else None,
        columns=columns,
        strongest=(control,) * len(refs),
        choosing=choosing,
        selected={name: cut if name == "votes" else cut & False for name in SELECTED},
        agreement=torch.rand(PROMPTS, layers, heads, generator=generator),
        logit_diff_drop=drop,
        base=base,
        demo_set=sets,
        numbers=torch.arange(len(sets)) * 2,
        criteria=Criteria(),
        accuracy=accuracy(run=run_info(layers, heads, model, task)),
        run=run_info(layers, heads, model, task),
        influence=made_influence(layers=layers, heads=heads),
        slope_of_model=-0.9,
        joint=joint_effects([head for head in refs if located[head]], transport),
        settings={"choosing": "41 prompts in 31 demonstration sets"},
        notes=("something must be said",),
    )


def joint_effects(heads, carried):
    """Of each head alone and of all: together a little less than the sum."""
    sets = [(head,) for head in heads] + ([tuple(heads)] if len(heads) > 1 else [])
    shares = [sum(float(carried[head]) for head in some) * (1 if len(some) == 1 else 0.9) for some in sets]
    return tuple(
        JointEffect(some, share, share - 0.05, share + 0.04) for some, share in zip(sets, shares, strict=True)
    )


def curves(
    count=2, *, cuts=("renormalised",), truth=True, floor=0.5, draws=20, model="a-model", task="a-task"
):
    """Answers to two labels: right in all prompts uncut, in a share `floor` with every label edge cut."""
    labels = torch.arange(PROMPTS) % 2

    def answers(rate):
        return torch.where(torch.arange(PROMPTS) < round(rate * PROMPTS), labels, 1 - labels)

    def steps(start, end, first):
        share = [start + (end - start) * k / count for k in range(first, count + 1)]
        return torch.stack([torch.stack([answers(x) for x in share], 1) for _ in cuts])

    def random(start, end):
        return steps(start, end, 1)[..., None].expand(-1, -1, -1, draws).contiguous()

    sets = torch.zeros(count, draws, 6, 8, dtype=torch.bool)
    for draw in range(draws):
        sets[:, draw, draw % 4, 7] = True  # four different ones
    return AblationCurves(
        heads=tuple(HeadRef(k % 6, k // 6) for k in range(count)),
        cuts=cuts,
        answers={"necessity": steps(1, floor, 0), "sufficiency": steps(floor, 0.9, 0)},
        random={"necessity": random(1, 0.9), "sufficiency": random(floor, 0.6)},
        sets=sets,
        matched=torch.ones(count, draws, dtype=torch.bool),
        base=answers(1.0),
        truth=labels if truth else None,
        labels=2,
        demo_set=torch.arange(PROMPTS) % SETS,
        run=run_info(6, 8, model, task),
    )
