"""Known answers by hand, every control and companion in plain Python loops, and the laws that must hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from support import uneven_prompts

from icl_kernel_lens import HeadScores, head_vote, read
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.reasons import Reason


def evidence_of(tiny, **options):
    model, _ = tiny("llama")
    return read(model, uneven_prompts(count=30, demos=5), progress=False, **options)


def test_the_right_head_scores_one_the_wrong_one_none_the_blind_one_nan():
    scores = head_vote(small_evidence())
    mean = scores.mean()
    assert mean[0, 0] == 1
    assert mean[0, 1] == 0
    assert mean[1, 0] == 0.5  # uniform weights vote for label 0, the answer of half the prompts
    assert mean[1, 1].isnan()
    assert scores.reasons == {Reason.NO_ATTENTION: 4}
    assert str(scores.best()) == "L0H0"


@pytest.mark.parametrize("against", ["model", "truth"])
@pytest.mark.parametrize("pooling", ["label", "span_max"])
def test_scores_and_controls_against_plain_loops(tiny, against, pooling):
    evidence = evidence_of(tiny)
    scores = head_vote(evidence, against=against, pooling=pooling)
    prompts = evidence.prompts
    answers = (evidence.label_scores.argmax(1) if against == "model" else prompts.test_labels).tolist()
    labels = prompts.demo_labels.tolist()
    classes = 3

    def credit(weights, prompt):
        share = [
            sum(w for w, y in zip(weights, labels[prompt], strict=True) if y == c) for c in range(classes)
        ]
        total = sum(share)
        winners = [c for c in range(classes) if share[c] / total >= max(share) / total - 1e-6]
        return 1 / len(winners) if answers[prompt] in winners else 0.0

    weights = evidence.weights[pooling]
    commonest = max(range(classes), key=lambda c: (answers.count(c), -c))
    for p in range(30):
        for layer, head in np.ndindex(3, 4):
            assert scores.values[p, layer, head].item() == pytest.approx(
                credit(weights[p, layer, head].tolist(), p)
            )
        assert scores.controls["label_prior"][p].item() == pytest.approx(credit([1] * 5, p))
        assert scores.controls["last_label"][p].item() == credit([0, 0, 0, 0, 1], p)
        assert scores.controls["first_demo"][p].item() == credit([1, 0, 0, 0, 0], p)
        assert scores.controls["commonest_answer"][p].item() == float(answers[p] == commonest)
    for layer, head in np.ndindex(3, 4):
        votes = [
            int(
                np.argmax(
                    [
                        sum(
                            w
                            for w, y in zip(weights[p, layer, head].tolist(), labels[p], strict=True)
                            if y == c
                        )
                        for c in range(classes)
                    ]
                )
            )
            for p in range(30)
        ]
        assert scores.companions["kappa"][layer, head].item() == pytest.approx(
            cohen_kappa_score(votes, answers), abs=1e-5
        )
        mass = weights[:, layer, head].sum(-1)
        assert scores.companions["label_attention"][layer, head].item() == pytest.approx(
            mass.mean().item(), abs=1e-6
        )


def test_the_sink_makes_every_head_vote_for_the_first_label():
    """A sink inside the first demonstration fools `span_max`, and its twin without position 0 shows it."""
    evidence = small_evidence()
    honest = evidence.weights["label"][:, :, :, :]
    fooled = honest.clone()
    fooled[..., 0] = 0.9
    evidence = replace(evidence, weights={"span_max": fooled, "span_max_without_first": honest})
    scores = head_vote(evidence, pooling="span_max")
    answers = evidence.answers
    first = (evidence.prompts.demo_labels[:, 0] == answers).float().mean()
    assert (scores.mean() == first).all()
    assert scores.companions["without_first"][0, 0] == 1
    assert scores.companions["without_first"][0, 1] == 0


def test_what_is_printed_begins_with_whether_there_is_anything_to_explain(tmp_path):
    """What evidence alone says, or the accuracy that was measured; saved with it; never that of other prompts."""
    evidence = small_evidence()
    alone = head_vote(evidence)
    assert alone.accuracy.reasons["no_demonstrations"] == Reason.NOT_RUN
    assert repr(alone).startswith("No in-context learning shown: ")
    second = repr(alone).splitlines()[1]
    assert second.startswith("  accuracy 75.0% with demonstrations, 75.0% of the majority class; ")
    assert "the last label 50.0%, the commonest answer 50.0%" in second
    measured = replace(
        alone.accuracy,
        correct={name: torch.ones(4) for name in ("demonstrations", "majority", "no_demonstrations")},
        reasons={"permuted_labels": Reason.NOTHING_PERMUTED},
    )
    scores = head_vote(evidence, accuracy=measured)
    assert repr(scores).startswith(f"{measured.opening()}\nHeadScores(head_vote: ")
    again = HeadScores.load(scores.save(tmp_path / "v.safetensors"))
    assert repr(again) == repr(scores)
    assert measured.verdict() in scores._repr_html_().replace("&#x27;", "'")
    other = replace(measured, digest="of others")
    with pytest.raises(ResultError, match="accuracy must be of these 4 prompts"):
        head_vote(evidence, accuracy=other)
    assert not repr(replace(scores, accuracy=None)).startswith("No"), "a score of one's own may have none"


def test_renaming_labels_and_permuting_demonstrations_change_nothing(tiny):
    evidence = evidence_of(tiny)
    prompts = evidence.prompts
    scores = head_vote(evidence)
    renaming = torch.tensor([2, 0, 1])
    renamed = replace(
        evidence,
        prompts=replace(
            prompts,
            demo_labels=renaming[prompts.demo_labels],
            test_labels=renaming[prompts.test_labels],
            label_sequences=prompts.label_sequences[:, renaming.argsort()],
        ),
        label_scores=evidence.label_scores[:, renaming.argsort()],
    )
    torch.testing.assert_close(head_vote(renamed).values, scores.values)
    order = torch.tensor([3, 1, 4, 0, 2])
    moved = replace(
        evidence,
        prompts=replace(prompts, demo_labels=prompts.demo_labels[:, order]),
        weights={name: w[..., order] for name, w in evidence.weights.items()},
    )
    found = head_vote(moved)
    torch.testing.assert_close(found.values, scores.values)
    for name in ("label_prior", "commonest_answer"):
        torch.testing.assert_close(found.controls[name], scores.controls[name])
    for name, companion in scores.companions.items():
        torch.testing.assert_close(found.companions[name], companion)
