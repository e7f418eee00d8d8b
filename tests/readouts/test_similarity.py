"""Similarity of the model's own predictions, one text at a time, by SciPy."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from scipy.stats import pearsonr
from support import uneven_prompts

from icl_kernel_lens import Evidence, PromptSet, Task, Template, load_task, read
from icl_kernel_lens.errors import EvidenceMissing, PromptError, ResultError
from icl_kernel_lens.evidence.reading import SEEN_AGAIN
from icl_kernel_lens.models.transformer_lens_adapters import BridgeAdapter
from icl_kernel_lens.prompts.example import Example
from icl_kernel_lens.readouts.similarity import pearson, prediction_similarity
from icl_kernel_lens.reasons import Reason


def predicted(model, tokens):
    """The next-token distribution of one text on its own."""
    with torch.no_grad():
        return model(torch.tensor([tokens]))[0, -1].double().softmax(-1)


def check(found, weights, similar):
    for number in range(len(similar)):
        for layer in range(weights.shape[1]):
            for head in range(weights.shape[2]):
                expected = pearsonr(weights[number, layer, head].double().numpy(), similar[number].numpy())
                value = float(found.values[number, layer, head])
                assert value == pytest.approx(expected.statistic, abs=2e-4)


@pytest.mark.parametrize("pooling", ["label", "span_max"])
@pytest.mark.parametrize("prepend_bos", [None, True])
def test_texts_of_a_task_each_run_alone(mini, pooling, prepend_bos):
    """Tokenized on their own, as the prompts were."""
    tokenizer = mini.tokenizer
    if prepend_bos and tokenizer.bos_token_id is None:
        pytest.skip("no such token")
    prompts = load_task("topics").prompts(mini, demos=6, count=6, sets=2, seed=3, prepend_bos=prepend_bos)
    evidence = read(mini, prompts, progress=False)
    found = prediction_similarity(mini, prompts, evidence, pooling=pooling, progress=False)
    assert found.unit == "Pearson correlation"
    similar = []
    for episode in prompts.episodes:
        rows = []
        for example in (episode.test, *episode.demos):
            ids = tokenizer(example.texts[0], add_special_tokens=prepend_bos is None)["input_ids"]
            rows.append(predicted(mini, [tokenizer.bos_token_id] * bool(prepend_bos) + ids))
        similar.append(torch.stack(rows[1:]) @ rows[0])
    check(found, evidence.pooled(pooling), torch.stack(similar))
    assert found.controls["shuffled_similarity"].nanmean().abs() < 0.1
    assert found.values.nanmean(0).abs().max() > 0.1


def test_two_fields_are_joined_as_in_the_template(mini):
    topics = load_task("topics").episodes(demos=12, count=12, seed=0, sets=None, balanced=False, given=None)
    words = topics[0].label_words
    pool = [
        Example((a.texts[0], b.texts[0]), a.label)
        for a, b in zip(topics[0].demos, topics[1].demos, strict=True)
    ]
    tests = [
        Example((a.test.texts[0], b.test.texts[0]), a.test.label)
        for a, b in zip(topics[:6], topics[6:], strict=True)
    ]
    default = load_task("topics").template
    middle = default.separator
    template = Template(
        demo=default.demo.replace("{text}", "{text}" + middle + "{text2}"), separator=default.separator
    )
    task = Task("pairs", tuple(words), tuple(words), template, tuple(pool), tuple(tests))
    prompts = task.prompts(mini, demos=4, count=3, seed=0)
    evidence = read(mini, prompts, progress=False)
    found = prediction_similarity(mini, prompts, evidence, progress=False)
    similar = []
    for episode in prompts.episodes:
        texts = [example.texts[0] + middle + example.texts[1] for example in (episode.test, *episode.demos)]
        rows = [predicted(mini, mini.tokenizer(text)["input_ids"]) for text in texts]
        similar.append(torch.stack(rows[1:]) @ rows[0])
    check(found, evidence.pooled("label"), torch.stack(similar))


def test_ready_made_ids_are_cut_out(tiny, monkeypatch, tmp_path):
    """From behind the label before to the label; each distinct text once; a checkpoint is resumed."""
    (model, hf), prompts = tiny("llama"), uneven_prompts(count=6, demos=4)
    prompts = prompts.select([0, 1, 2, 3, 4, 5, 0, 1])
    evidence = read(model, prompts, progress=False)
    forward, texts = BridgeAdapter.forward, []

    def noting(self, tokens, lengths, positions, **options):
        texts.extend(tuple(row[:n]) for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True))
        return forward(self, tokens, lengths, positions, **options)

    monkeypatch.setattr(BridgeAdapter, "forward", noting)
    found = prediction_similarity(
        model, prompts, evidence, progress=False, batch_size=3, checkpoint=tmp_path / "kept"
    )
    assert len(texts) == len(set(texts))
    assert len(texts) <= 6 * 5 + SEEN_AGAIN, "and a few prompts, to see that the evidence is of this model"
    ran = len(texts)
    again = prediction_similarity(model, prompts, evidence, progress=False, checkpoint=tmp_path / "kept")
    assert len(texts) == ran + SEEN_AGAIN
    assert torch.equal(again.values, found.values)
    similar = []
    for number, tokens in enumerate(prompts.tokens.tolist()):
        ends = [0, *(p + 1 for p in prompts.label_pos[number].tolist())]
        demos = [tokens[a : b - 1] for a, b in pairwise(ends)]
        test = tokens[ends[-1] : int(prompts.answer_pos[number]) + 1]
        rows = []
        for text in (test, *demos):
            with torch.no_grad():
                rows.append(hf(torch.tensor([text])).logits[0, -1].double().softmax(-1))
        similar.append(torch.stack(rows[1:]) @ rows[0])
    check(found, evidence.pooled("label"), torch.stack(similar))


def test_a_saved_evidence_has_tokens_enough(mini, tmp_path):
    """Without its episodes, texts are the tokens in the prompt: the same where the tokenizer splits at words."""
    prompts = load_task("topics").prompts(mini, demos=5, count=4, seed=1)
    evidence = read(mini, prompts, progress=False)
    again = Evidence.load(evidence.save(tmp_path / "evidence.safetensors"))
    assert again.prompts.episodes is None
    found = prediction_similarity(mini, again.prompts, again, progress=False)
    expected = prediction_similarity(mini, prompts, evidence, progress=False)
    torch.testing.assert_close(found.values, expected.values, atol=1e-4, rtol=0, equal_nan=True)


def test_nothing_that_varies_is_no_correlation(tiny):
    """NaN and a reason, for attention all alike, none at all, and similarities all alike."""
    (model, _), prompts = tiny("gpt2"), uneven_prompts(count=4, demos=4)
    evidence = read(model, prompts, progress=False)
    weights = evidence.weights["label"].clone()
    weights[:, 0, 0] = 0.2
    weights[1, 1, 1] = 0
    weights[2, 2, 2] = float("nan")
    found = prediction_similarity(
        model, prompts, replace(evidence, weights={"label": weights}), progress=False
    )
    nan = torch.zeros(4, 3, 4, dtype=torch.bool)
    nan[:, 0, 0] = nan[1, 1, 1] = nan[2, 2, 2] = True
    assert torch.equal(found.values.isnan(), nan)
    assert torch.equal(found.controls["shuffled_similarity"].isnan(), nan)
    assert found.reasons == {
        Reason.ATTENTION_ALIKE: 4,
        Reason.NO_ATTENTION: 1,
        Reason.NO_TOKEN: 1,
    }
    similar = torch.tensor([[0.1, 0.1, 0.1 + 2e-8, 0.1], [0.1, 0.2, 0.3, 0.1]])
    assert pearson(weights[2:], similar)[0].isnan().all()

    flat = PromptSet.from_tokens(
        torch.tensor([[5, 10, 5, 20, 5, 30, 7], [5, 10, 6, 20, 7, 30, 7]]),
        torch.tensor([[1, 3, 5]] * 2),
        torch.tensor([[0, 1, 2]] * 2),
        torch.tensor([10, 20, 30]),
    )
    found = prediction_similarity(model, flat, read(model, flat, progress=False), progress=False)
    assert found.values[0].isnan().all()
    assert not found.values[1].isnan().any()
    assert found.reasons == {Reason.SIMILARITIES_ALIKE: 12}


def test_shuffles_are_seeded_and_within_the_prompt(tiny):
    (model, _), prompts = tiny("gpt2"), uneven_prompts(count=4, demos=4)
    evidence = read(model, prompts, progress=False)
    one, two = (prediction_similarity(model, prompts, evidence, progress=False) for _ in range(2))
    assert torch.equal(one.controls["shuffled_similarity"], two.controls["shuffled_similarity"])
    other = replace(prompts, info=replace(prompts.info, seed=5))
    three = prediction_similarity(model, other, evidence, progress=False)
    assert not torch.equal(one.controls["shuffled_similarity"], three.controls["shuffled_similarity"])
    assert torch.equal(one.values, three.values)


def test_refusals(tiny):
    (model, _), prompts = tiny("gpt2"), uneven_prompts(count=4, demos=4)
    evidence = read(model, prompts, progress=False)
    with pytest.raises(ResultError, match="evidence must be a reading of these 4 prompts"):
        prediction_similarity(model, prompts.select([1, 0, 2, 3]), evidence)
    with pytest.raises(EvidenceMissing, match="label_sum"):
        prediction_similarity(model, prompts, evidence, pooling="label_sum")
    few = uneven_prompts(count=2, demos=2)
    with pytest.raises(ResultError, match="at least three demonstrations; these prompts have 2"):
        prediction_similarity(model, few, read(model, few, progress=False))
    empty = PromptSet.from_tokens(
        torch.tensor([[5, 10, 20, 5, 30, 7]]),
        torch.tensor([[1, 2, 4]]),
        torch.tensor([[0, 1, 2]]),
        torch.tensor([10, 20, 30]),
    )
    with pytest.raises(PromptError, match="demonstration 1 of prompt 0 has none"):
        prediction_similarity(model, empty, read(model, empty, progress=False))
