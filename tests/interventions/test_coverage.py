"""Label coverage: against the plain Hugging Face model, loop by loop, and models that read labels at a known place."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from architectures import hf_model
from interventions.huggingface import HEADS, Plain, rows_changed, without
from interventions.label_readers import label_reader, reader_prompts
from support import shared_prompts, uneven_prompts

from icl_kernel_lens import PromptSet, Task, label_coverage, load, load_task
from icl_kernel_lens.errors import PromptError, ResultError
from icl_kernel_lens.interventions import coverage
from icl_kernel_lens.reasons import Reason

LAYERS = 3


def two_classes() -> PromptSet:
    prompts = uneven_prompts(count=3)
    labels = prompts.demo_labels % 2
    words = torch.tensor([10, 20])
    return PromptSet.from_tokens(
        prompts.tokens.scatter(1, prompts.label_pos, words[labels]),
        prompts.label_pos,
        labels,
        words,
        answer_pos=prompts.answer_pos,
        demo_set=torch.arange(3),
    )


def long_labels() -> PromptSet:
    """Labels of two tokens, three classes; a token stands between demonstrations."""
    generator, words = torch.Generator().manual_seed(3), torch.tensor([[10, 11], [20, 11], [30, 31]])
    labels = torch.randint(0, 3, (3, 3), generator=generator)
    start = torch.tensor([[3, 9, 15], [2, 10, 16], [4, 9, 14]])
    answer = torch.tensor([22, 25, 20])
    tokens = torch.randint(40, 80, (3, 26), generator=generator)
    tokens = tokens.scatter(1, start, words[labels][..., 0]).scatter(1, start + 1, words[labels][..., 1])
    begin = torch.cat([torch.ones(3, 1, dtype=torch.long), start[:, :-1] + 3], 1)
    made = PromptSet.from_tokens(
        tokens, start, labels, words[:, 0], answer_pos=answer, demo_set=torch.arange(3),
        test_labels=torch.tensor([2, 0, 1]), demo_spans=torch.stack([begin, start + 1], -1),
    )  # fmt: skip
    return replace(
        made,
        label_spans=torch.stack([start, start + 2], -1),
        demo_spans=torch.stack([begin, start + 2], -1),
        label_sequences=words.expand(3, -1, -1).clone(),
        label_lengths=torch.full((3, 3), 2),
    )


def keys_by_hand(prompts: PromptSet, number: int, offset: int) -> set[int]:
    """The tokens at an offset, before the test input."""
    spans = prompts.label_spans[number].tolist()
    labels = {at for start, end in spans for at in range(start, end)}
    if offset == 0:
        return labels
    return {
        start + offset for start, _ in spans if 0 <= start + offset < where_the_test_begins(prompts, number)
    } - labels


def where_the_test_begins(prompts: PromptSet, number: int) -> int:
    spans = prompts.demo_spans[number].tolist()
    return spans[-1][1] + spans[-1][0] - spans[-2][1]


def part_by_hand(plain, prompts, number, reference, offsets=None, *, keep=False, renormalise=False, rows="answer", layer=None, every=()):  # fmt: skip
    """t of one prompt: every shift of the classes run whole, one after the other, with edges cut by hooks."""
    classes, at = prompts.labels, int(prompts.answer_pos[number])
    begin = where_the_test_begins(prompts, number)
    demos = set(range(max(1, int(prompts.demo_spans[number, 0, 0])), begin))
    demos |= {key for offset in every for key in keys_by_hand(prompts, number, offset)}
    scores = []
    for by in range(classes):
        tokens = prompts.tokens[number, : at + 1].clone()
        for demo in range(prompts.demos):
            start, end = prompts.label_spans[number, demo].tolist()
            label = (int(prompts.demo_labels[number, demo]) + by) % classes
            tokens[start:end] = prompts.label_sequences[number, label, : end - start]
        edits = {}
        if offsets is not None:
            mine = {key for offset in offsets for key in keys_by_hand(prompts, number, offset)}
            for here in range(LAYERS):
                cut = demos - mine if keep else mine
                if layer not in (None, here):
                    if not keep:
                        continue
                    cut = demos
                queries = [at] if rows == "answer" else range(begin, at + 1)
                edits[here] = [
                    (head, query, without([k for k in cut if k < query], renormalise=renormalise))
                    for head in range(HEADS)
                    for query in queries
                ]
        logits = rows_changed(plain, tokens, edits)[at]
        scores.append(logits[prompts.label_tokens[number]])
    scores = torch.stack(scores)
    t = scores[0] - scores.mean(0)
    return float(t[reference] - t[[c for c in range(classes) if c != reference]].mean())


def reference_of(plain, prompts, number, against) -> int:
    if against == "truth":
        return int(prompts.test_labels[number])
    logits = plain.run(prompts.tokens[number, : int(prompts.answer_pos[number]) + 1])[0][-1]
    return int(logits[prompts.label_tokens[number]].argmax())


@pytest.mark.parametrize("rows", ["answer", "test_input"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj"])
@pytest.mark.parametrize("make", [uneven_prompts, two_classes, long_labels])
def test_label_parts_are_those_of_hooks(tiny, name, make, rows):
    if rows == "test_input" and (name != "llama" or make is two_classes):
        pytest.skip("rows of the test input: on one model")
    model, _ = tiny(name, "bridge")
    prompts, plain = make(), Plain(name, hf_model(name))
    found = label_coverage(model, prompts, rows=rows, progress=False)
    against = found.settings["against"]
    assert against == ("truth" if prompts.test_labels is not None else "model")
    assert found.offsets == ((-1, 0, 2) if make is long_labels else (-1, 0, 1, 2))
    for number in (1,):
        reference = reference_of(plain, prompts, number, against)
        assert int(found.reference[number]) == reference
        whole = part_by_hand(plain, prompts, number, reference)
        assert float(found.part[number]) == pytest.approx(whole, abs=2e-5)
        for side, keep in (("necessity", False), ("sufficiency", True)):
            for at, offsets in enumerate(found.sets):
                for cut, renormalise in enumerate((False, True)):
                    expected = part_by_hand(
                        plain, prompts, number, reference, offsets, keep=keep, renormalise=renormalise,
                        rows=rows, every=found.offsets,
                    )  # fmt: skip
                    value = float(found.left[side][number, cut, at])
                    assert value == pytest.approx(expected, abs=2e-5), (side, offsets, renormalise)


def test_layers_are_cut_and_kept_one_by_one(tiny):
    model, _ = tiny("llama", "bridge")
    prompts, plain = uneven_prompts(), Plain("llama", hf_model("llama"))
    found = label_coverage(model, prompts, offsets=(0, 1), layers=True, against="model", progress=False)
    assert found.by_layer["necessity"].shape == (5, 2, 2, LAYERS)
    reference = reference_of(plain, prompts, 1, "model")
    for side, keep in (("necessity", False), ("sufficiency", True)):
        for layer in range(LAYERS):
            for at, offset in enumerate(found.offsets):
                expected = part_by_hand(
                    plain, prompts, 1, reference, (offset,), keep=keep, renormalise=True, layer=layer,
                    every=found.offsets,
                )  # fmt: skip
                assert float(found.by_layer[side][1, 1, at, layer]) == pytest.approx(expected, abs=2e-5)
    assert set(found.layer_table()["layer"]) == set(range(LAYERS))


def test_for_two_classes_it_is_half_of_what_exchanging_them_does(mini):
    from icl_kernel_lens import corrupt, patch_labels

    prompts = load_task("topics").prompts(mini, demos=4, count=8, sets=4)
    other = corrupt(prompts, "map_labels", seed=0)
    runs = patch_labels(
        mini,
        clean=prompts,
        corrupted=other,
        against="truth",
        direction="noise",
        heads=[(0, 0)],
        progress=False,
    )
    found = label_coverage(mini, prompts, offsets=(0,), progress=False)
    assert runs.source is not None
    torch.testing.assert_close(found.part, (runs.base - runs.source) / 2, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize(("what", "offset"), [("label", 0), ("after", 1)])
def test_the_place_that_is_read_is_found(what, offset, labels):
    model = label_reader(what, labels)
    found = label_coverage(model, reader_prompts(labels=labels), progress=False)
    smallest = found.smallest_set()
    assert smallest.offsets == (offset,)
    lost, kept = found.lost()[0][0], found.kept()[0][0]
    for at, offsets in enumerate(found.sets):
        reads = float(offset in offsets)
        assert float(lost[at]) == pytest.approx(reads, abs=1e-3)
        assert float(kept[at]) == pytest.approx(reads, abs=1e-3)
    assert found.test_input is None
    assert f"offset {'+1' if offset else '0'} loses at least 80% when cut" in repr(found)


def test_labels_that_come_by_an_earlier_token_of_the_test_input():
    model, prompts = label_reader("test"), reader_prompts()
    with pytest.warns(
        UserWarning, match="labels do not enter reads-test's answer by its own edges to offsets -1, 0"
    ):
        found = label_coverage(model, prompts, progress=False)
    assert found.smallest_set().offsets is None
    assert "no set of the offsets -1, 0, +1, +2 loses at least 80%" in found.smallest_set().why
    wider = found.test_input
    assert wider is not None
    assert wider.smallest_set().offsets == (0,)
    torch.testing.assert_close(wider.part, found.part)
    assert "with the rows of all test-input tokens" in repr(found)
    assert "answer" not in str(wider.run.reading)


def test_labels_at_two_places_at_once(monkeypatch):
    """Either alone does not lose enough, both together do."""
    model, prompts = label_reader("label"), reader_prompts()
    original = coverage.label_keys

    def torn(prompts, number, offsets):
        """Offset 0 holds the first half of the labels alone, offset 1 the others."""
        keys = original(prompts, number, offsets)
        labels = original(prompts, number, (0,))[0]
        for at, offset in enumerate(offsets):
            if offset in (0, 1):
                keys[at] = labels
                keys[at, 2 * (1 - offset) : 2 * (1 - offset) + 2] = False
        return keys

    monkeypatch.setattr(coverage, "label_keys", torn)
    found = label_coverage(model, prompts, progress=False)
    assert found.smallest_set().offsets == (0, 1)


def test_which_sets_of_offsets_are_measured():
    assert len(coverage.sets_of((-1, 0, 1, 2), "answer")) == 15
    assert coverage.sets_of((0, 1), "answer") == ((0,), (1,), (0, 1))
    many = coverage.sets_of((-2, -1, 0, 1, 3), "answer")
    assert len(many) == 5 + 4 + 3 + 2 + 1
    assert (-1, 0, 1) in many
    assert (0, 3) not in many
    assert coverage.sets_of((-1, 0, 1), "test_input") == ((-1,), (0,), (1,), (-1, 0, 1))
    assert coverage.sets_of((0,), "test_input") == ((0,),)


def test_without_a_label_part_there_are_no_shares(tiny):
    silent = label_coverage(label_reader("nothing"), reader_prompts(), progress=False)
    model, _ = tiny("llama", "bridge")
    random = label_coverage(model, shared_prompts(sets=8, tests=2), progress=False)
    alone = label_coverage(
        label_reader("label"),
        replace(reader_prompts(), demo_set=torch.zeros(32, dtype=torch.long)),
        progress=False,
    )
    for found, reason in (
        (silent, Reason.NO_LABEL_PART),
        (random, Reason.NO_LABEL_PART),
        (alone, Reason.NO_LABEL_INTERVAL),
    ):
        assert found.undefined is reason
        assert all(x.isnan().all() for x in (*found.lost(), *found.kept()))
        assert f"shares are undefined: {reason}" in repr(found).splitlines()[0]
        assert found.smallest_set().offsets is None
        assert str(reason) in found.smallest_set().why
        assert found.test_input is None
        assert found.figure().png().startswith(b"\x89PNG")
    assert 'against="model"' in repr(random).splitlines()[0]
    assert 'against="model"' not in repr(silent).splitlines()[0]


def test_sharing_batches_and_checkpoints_change_nothing(tiny, tmp_path, monkeypatch):
    model, _ = tiny("qwen3", "bridge")
    prompts = shared_prompts(sets=2, tests=3)
    plain = label_coverage(model, prompts, progress=False, layers=True)
    small = label_coverage(model, prompts, progress=False, layers=True, batch_size=2)
    torch.testing.assert_close(small.left, plain.left, atol=1e-5, rtol=1e-4)
    for number in (0, 4, 6):
        alone = label_coverage(model, prompts.select([number]), progress=False, offsets=plain.offsets)
        torch.testing.assert_close(
            alone.left["necessity"][0], plain.left["necessity"][number], atol=1e-5, rtol=1e-4
        )
    kept = label_coverage(model, prompts, progress=False, layers=True, checkpoint=tmp_path)
    monkeypatch.setattr(coverage.Edits, "cut", lambda *_: pytest.fail("finished prompts are run again"))
    again = label_coverage(model, prompts, progress=False, layers=True, checkpoint=tmp_path)
    for one in (kept, again):
        for side in ("necessity", "sufficiency"):
            assert torch.equal(one.left[side], plain.left[side])
            assert torch.equal(one.by_layer[side], plain.by_layer[side])


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    """The answer's rows, and then those of the test input."""
    model, prompts = label_reader("test"), reader_prompts(count=8)
    calls, original = [], coverage.Edits.cut

    def failing(self, row, cell):
        calls.append(1)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return original(self, row, cell)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        whole = label_coverage(model, prompts, progress=False)
        with monkeypatch.context() as patch:
            patch.setattr(coverage.Edits, "cut", failing)
            with pytest.raises(KeyboardInterrupt):
                label_coverage(model, prompts, progress=False, checkpoint=tmp_path)
        found = label_coverage(model, prompts, progress=False, checkpoint=tmp_path)
    assert (tmp_path / "test_input").exists()
    assert whole.test_input is not None
    assert found.test_input is not None
    assert torch.equal(found.left["necessity"], whole.left["necessity"])
    assert torch.equal(found.test_input.left["sufficiency"], whole.test_input.left["sufficiency"])


def test_it_is_saved_and_loaded_whole(tmp_path):
    with pytest.warns(UserWarning, match="labels do not enter"):
        found = label_coverage(label_reader("test"), reader_prompts(), layers=True, progress=False)
    again = load(found.save(tmp_path / "coverage.safetensors"))
    assert repr(again) == repr(found)
    assert again.to_dataframe().equals(found.to_dataframe())


def test_label_words_of_unequal_token_counts(mini):
    """They are written anew, so that positions move; each run's own count."""
    texts = ("plea lawyer judge later", "comet lunar silver", "chord melody opera again")
    rows = [
        {"text": f"{text} {more}", "label": i} for text in texts for more in ("rose", "pine") for i in (0, 1)
    ]
    task = Task.from_records(rows, name="uneven", label_words=("gray", "silver moss"))
    prompts = task.prompts(mini, demos=3, count=4, sets=2)
    assert (prompts.label_lengths[:, 0] != prompts.label_lengths[:, 1]).all()
    found = label_coverage(mini, prompts, offsets=(0, -1), progress=False)
    assert found.offsets == (-1, 0)
    assert found.part.isfinite().all()
    whole = found.left["sufficiency"][:, 0, -1] - found.left["necessity"][:, 0, -1]
    assert whole.isfinite().all()
    again = replace(prompts, episodes=None)
    with pytest.raises(
        PromptError, match="labels of unequal token counts can be exchanged only in prompts made"
    ):
        label_coverage(mini, again, progress=False)


def test_what_is_refused(tiny):
    model, _ = tiny("llama", "bridge")
    prompts = uneven_prompts()
    with pytest.raises(PromptError, match=r"\+60 does not"):
        label_coverage(model, prompts, offsets=(0, 60), progress=False)
    for wrong in ({"lose": 0.0}, {"keep": 80.0}):
        with pytest.raises(ResultError, match=r"above 0 and at most 1.*For 80 %, pass 0\.8"):
            label_coverage(model, prompts, progress=False, **wrong)
    with pytest.raises(PromptError, match="needs true labels"):
        label_coverage(model, two_classes(), against="truth", progress=False)
