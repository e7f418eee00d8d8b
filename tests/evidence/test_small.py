"""The evidence written by hand is what its docstring says, counted by plain loops."""

from __future__ import annotations

from icl_kernel_lens.evidence.small import small_evidence


def test_each_head_looks_where_it_is_said_to():
    evidence = small_evidence()
    labels = evidence.prompts.demo_labels.tolist()
    for prompt, answer in enumerate(evidence.answers.tolist()):
        rows = evidence.weights["label"][prompt].tolist()
        votes = [
            [
                [sum(w for w, y in zip(row, labels[prompt], strict=True) if y == c) for c in (0, 1)]
                for row in layer
            ]
            for layer in rows
        ]
        right, wrong, alike, none = votes[0][0], votes[0][1], rows[1][0], rows[1][1]
        assert right[answer] > right[1 - answer]
        assert wrong[answer] < wrong[1 - answer]
        assert len(set(alike)) == 1
        assert alike[0] > 0
        assert none == [0, 0, 0]


def test_its_parts_agree():
    evidence = small_evidence()
    prompts = evidence.prompts
    assert evidence.answers.tolist() == evidence.label_scores.argmax(1).tolist() == [0, 1, 1, 0]
    assert evidence.model_tokens.tolist() == [50, 51, 51, 50]
    assert (evidence.weights["label"].sum(-1) < 1).all()
    shown = prompts.tokens.gather(1, prompts.label_pos)
    assert shown.tolist() == [[50, 51, 50]] * 4
