"""Label influence, replaced prompt by replaced prompt: against the plain Hugging Face model, each run alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from architectures import hf_model
from interventions.test_coverage import long_labels, two_classes
from models.left_as_found import KINDS, build, same, state
from support import needs_hooked, shared_prompts, uneven_prompts, verified_otherwise

from icl_kernel_lens import (
    PromptSet,
    Task,
    corrupt,
    in_context_accuracy,
    label_influence,
    load,
    load_task,
)
from icl_kernel_lens.errors import PromptError, ResultError
from icl_kernel_lens.influence import measure
from icl_kernel_lens.influence.measure import Plan, influence_cost
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.prompts.corrupt_labels import shift_labels
from icl_kernel_lens.run.runner import tokens_to_run


def scores_by_hand(hf, prompts: PromptSet, number: int, labels: list[int]) -> torch.Tensor:
    """Label logits of one prompt with these labels written in, run whole and alone."""
    at = int(prompts.answer_pos[number])
    tokens = prompts.tokens[number, : at + 1].clone()
    for demo, label in enumerate(labels):
        start, end = prompts.label_spans[number, demo].tolist()
        tokens[start:end] = prompts.label_sequences[number, label, : end - start]
    with torch.no_grad():
        logits = hf(tokens[None]).logits[0, at]
    return logits[prompts.label_tokens[number]].float()


def check_by_hand(found, hf, numbers):
    prompts, labels = found.prompts, found.prompts.labels
    for order in range(len(found.places)):
        shown = prompts if order == 0 else corrupt(prompts, "reorder_demos", seed=found.seed + order)
        for number in numbers:
            places = found.places[order, number]
            assert torch.equal(shown.demo_labels[number][places], prompts.demo_labels[number])
            own = shown.demo_labels[number].tolist()
            close(found.scores[order, number], scores_by_hand(hf, shown, number, own))
            for demo, label in itertools.product(range(prompts.demos), range(labels)):
                at = int(places[demo])
                replaced = [*own[:at], label, *own[at + 1 :]]
                expected = scores_by_hand(hf, shown, number, replaced)
                if label == own[at]:
                    expected = torch.full_like(expected, torch.nan)
                close(found.replaced[order, number, demo, label], expected)
    for number in numbers:
        own = prompts.demo_labels[number].tolist()
        for by in range(labels):
            shifted = [(label + by) % labels for label in own]
            close(found.shifted[number, by], scores_by_hand(hf, prompts, number, shifted))
        for at, row in enumerate(found.pattern_labels[:, number].tolist()):
            if not found.joint[at, number].isnan().any():
                close(found.joint[at, number], scores_by_hand(hf, prompts, number, row))


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj"])
@pytest.mark.parametrize("make", [shared_prompts, two_classes, long_labels])
def test_every_replaced_prompt_is_what_it_is_alone(tiny, name, make):
    model, _ = tiny(name, "bridge")
    found = label_influence(model, make(), progress=False)
    assert found.scores.shape[0] == 2
    assert not found.joint.isnan().all()
    check_by_hand(found, hf_model(name), (0, len(found.prompts) - 1))
    # G itself, once more from its definition.
    prompts, hf = found.prompts, hf_model(name)
    own = prompts.demo_labels[0].tolist()
    pulls = []
    for label in range(prompts.labels):
        if label != own[1]:
            before = scores_by_hand(hf, prompts, 0, own)
            after = scores_by_hand(hf, prompts, 0, [own[0], label, *own[2:]])
            pulls.append((before[own[1]] - before[label]) - (after[own[1]] - after[label]))
    assert float(found.values[0, 1]) == pytest.approx(float(torch.stack(pulls).mean()), abs=1e-4)


@needs_hooked
def test_both_model_classes_agree(tiny):
    prompts = shared_prompts()
    one, two = (
        label_influence(tiny("llama", kind)[0], prompts, progress=False) for kind in ("bridge", "hooked")
    )
    close(one.replaced, two.replaced)


def test_shared_prefixes_change_nothing(tiny, monkeypatch):
    model, _ = tiny("llama", "bridge")
    prompts = shared_prompts()
    shared = label_influence(model, prompts, progress=False)
    plan = Plan.of(as_adapter(model), prompts, 2, 0)
    run = sum(tokens_to_run(part, as_adapter(model)) for part in plan.parts)
    assert run < 0.8 * sum(int(part.lengths.sum()) for part in plan.parts)
    with verified_otherwise(monkeypatch, model, not_shared="not in this test"):
        fresh = label_influence(model, prompts, progress=False)
    for name in ("scores", "replaced", "shifted", "joint"):
        close(getattr(shared, name), getattr(fresh, name))


def test_an_interrupted_run_goes_on(tiny, tmp_path, monkeypatch):
    model, _ = tiny("gpt2", "bridge")
    prompts = shared_prompts()
    whole = label_influence(model, prompts, progress=False)
    calls, answered = itertools.count(), []
    from icl_kernel_lens.evidence import reading

    plain = reading.answer_logits

    def fails(adapter, batch, *args, **kwargs):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return plain(adapter, batch, *args, **kwargs)

    def counts(adapter, batch, *args, **kwargs):
        answered.append(len(batch))
        return plain(adapter, batch, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "answer_logits", fails)
        with pytest.raises(KeyboardInterrupt):
            label_influence(model, prompts, batch_size=8, checkpoint=tmp_path, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "answer_logits", counts)
        resumed = label_influence(model, prompts, batch_size=8, checkpoint=tmp_path, progress=False)
    plan = Plan.of(as_adapter(model), prompts, 2, 0)
    assert sum(answered) < sum(map(len, plan.parts)) + len(prompts), "finished prompts are not run again"
    for name in ("scores", "replaced", "shifted", "joint"):
        close(getattr(resumed, name), getattr(whole, name))


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_left_as_it_was(kind):
    model = build(kind)
    before = state(model)
    label_influence(model, shared_prompts(), progress=False)
    assert same(before, state(model))


def test_labels_of_other_lengths_are_not_put_in_and_the_notes_say_so(mini):
    """Classes 0 and 1 have one token and class 2 has two: 2 is never put, nor replaced."""
    task = load_task("topics")
    prompts = task.prompts(mini, demos=6, count=6, sets=3, seed=0)
    longer = torch.nn.functional.pad(prompts.label_sequences, (0, 1))
    third = torch.tensor([[int(prompts.tokens.max()) - 1, 3]]).expand(len(prompts), 1, 2)
    uneven = replace(
        prompts,
        label_sequences=torch.cat([longer[:, :2], third], 1),
        label_lengths=torch.tensor([1, 1, 2]).expand(len(prompts), 3),
        label_words=tuple((*words[:2], "third") for words in prompts.label_words),
        classes=(*prompts.classes[:2], "third"),
        episodes=None,
    )
    with pytest.raises(PromptError, match="only in prompts made from text"):
        label_influence(mini, uneven, progress=False)
    put = measure.interchangeable(uneven)
    assert not put[..., 2].any()
    assert put[..., :2].any(-1).all()


def test_labels_of_unequal_length_in_prompts_from_text(mini):
    """Two of three classes take each other's place; all are shifted together in prompts that are written anew."""
    texts = ("plea lawyer judge later", "comet lunar silver", "chord melody opera again")
    rows = [
        {"text": f"{text} {more}", "label": i}
        for text in texts
        for more in ("rose", "pine")
        for i in range(3)
    ]
    task = Task.from_records(rows, name="uneven", label_words=("gray", "rose", "silver moss"))
    prompts = task.prompts(mini, demos=4, count=4, sets=2)
    assert prompts.label_lengths[0].tolist() == [1, 1, 2]
    found = label_influence(mini, prompts, progress=False)
    long = prompts.demo_labels == 2
    assert long.any()
    assert found.values[long].isnan().all()
    assert found.values[~long].isfinite().all()
    assert f"{int(long.sum())} of 16 demonstrations have none" in found.notes[0]
    for by in (1, 2):
        anew = shift_labels(prompts, by, mini)
        assert not torch.equal(anew.lengths, prompts.lengths)
        for number in range(4):
            end = int(anew.lengths[number])
            with torch.no_grad():
                logits = mini(anew.tokens[number : number + 1, :end], return_type="logits")[0, -1]
            close(found.shifted[number, by], logits[anew.label_tokens[number]])


def test_of_many_labels_a_sample_is_replaced(tiny):
    model, _ = tiny("gpt2", "bridge")
    prompts = shared_prompts()
    words = torch.arange(10, 90, 10)
    labels = torch.randint(0, 8, (3, prompts.demos), generator=torch.Generator().manual_seed(1))[
        prompts.demo_set
    ]
    many = PromptSet.from_tokens(
        prompts.tokens.scatter(1, prompts.label_pos, words[labels]),
        prompts.label_pos,
        labels,
        words,
        answer_pos=prompts.answer_pos,
        demo_set=prompts.demo_set,
    )
    found = label_influence(model, many, progress=False)
    made = ~found.replaced[0].isnan().any(-1)
    assert (made.sum(-1) == measure.MOST_REPLACEMENTS).all()
    assert torch.equal(made[0], made[1]), "prompts of a set have the same"
    assert any("a sample of 5" in note for note in found.notes)
    observed, summed = found.joint_effects()
    there = ~observed.isnan().any(-1)
    assert there.any()
    assert not summed[there].isnan().any(), "what is joined was measured singly, too"
    hf = hf_model("gpt2")
    at = made[0, 2].nonzero()[0, 0]
    own = many.demo_labels[0].tolist()
    close(found.replaced[0, 0, 2, at], scores_by_hand(hf, many, 0, [*own[:2], int(at), *own[3:]]))


def test_one_label_alone_is_no_joint_replacement(mini):
    prompts = load_task("topics").prompts(mini, demos=3, count=8, sets=4, seed=0)
    found = label_influence(mini, prompts, progress=False)
    changed = (found.pattern_labels != prompts.demo_labels).sum(-1)
    assert bool((changed[~found.joint.isnan().any(-1)] >= 2).all())
    assert str(found.additivity(pattern="half").r2) == "nan"
    assert found.additivity().r2.value == found.additivity().r2.value
    assert "half" not in str(found.additivity_figure().spec())


def test_whole_labels_are_scored_too(mini):
    task = load_task("topics")
    options = {"demos": 4, "count": 4, "sets": 2, "seed": 0}
    whole = label_influence(mini, task.prompts(mini, **options, score_on="sequence"), progress=False)
    first = label_influence(mini, task.prompts(mini, **options), progress=False)
    # Labels of one token: log-probabilities and logits differ by what all labels have in common.
    torch.testing.assert_close(whole.values, first.values, atol=1e-4, rtol=0)


def test_accuracy_is_measured_or_taken(mini):
    prompts = load_task("topics").prompts(mini, demos=4, count=8, sets=4, seed=0)
    measured = label_influence(mini, prompts, progress=False)
    expected = in_context_accuracy(mini, prompts, progress=False)
    assert measured.accuracy.mean() == expected.mean()
    taken = label_influence(mini, prompts, accuracy=expected, progress=False)
    assert taken.accuracy is expected
    with pytest.raises(ResultError, match="accuracy must be of these"):
        label_influence(mini, prompts.select([0, 1, 2]), accuracy=expected, progress=False)


def test_cost_is_what_is_run(tiny):
    model, _ = tiny("llama", "bridge")
    prompts = shared_prompts()
    cost = influence_cost(model, prompts)
    plan = Plan.of(as_adapter(model), prompts, 2, 0)
    assert cost.runs == sum(map(len, plan.parts))
    assert cost.minutes > 0
    assert "tokens to run" in str(cost)


def test_what_cannot_be_measured_is_refused(tiny):
    model, _ = tiny("gpt2", "bridge")
    with pytest.raises(PromptError, match="at least 2 demonstrations"):
        label_influence(model, uneven_prompts(demos=1), progress=False)
    with pytest.raises(PromptError, match="orders must be at least 1"):
        label_influence(model, uneven_prompts(), orders=0, progress=False)
    prompts = uneven_prompts()
    with pytest.raises(PromptError, match=r"prompts 0 and 1 \(set 0\) differ"):
        label_influence(model, replace(prompts, demo_set=torch.zeros(5, dtype=torch.long)), progress=False)
    moved = replace(prompts, tokens=prompts.tokens + 1)
    with pytest.raises(PromptError, match="every demonstration shows its class's label"):
        label_influence(model, moved, progress=False)


def test_it_is_saved_and_loaded_whole(tiny, tmp_path):
    model, _ = tiny("gpt2", "bridge")
    found = label_influence(model, shared_prompts(), progress=False)
    again = load(found.save(tmp_path / "influence.safetensors"))
    assert torch.equal(again.values, found.values)
    assert again.verdict() == found.verdict()
    assert repr(again) == repr(found)
