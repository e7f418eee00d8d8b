"""The hand-checkable fixture of the paper's protocol, and the averaged row against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from icl_kernel_lens import PromptSet, head_vote
from icl_kernel_lens.errors import EvidenceMissing
from icl_kernel_lens.evidence.rows import RowPlan, pool, resample
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.numbers.votes import hard_vote, kernel_regression
from icl_kernel_lens.prompts.promptset import TokenRole

ROW = [0.10, 0.05, 0.05, 0.02, 0.03, 0.30, 0.04, 0.06, 0.15, 0.20]


def fixture():
    """Positions 0–9; three demonstrations of three tokens with labels A, B, A; the last one answers."""
    return PromptSet.from_tokens(
        torch.tensor([[1, 1, 20, 1, 1, 21, 1, 1, 20, 1]]),
        torch.tensor([[2, 5, 8]]),
        torch.tensor([[0, 1, 0]]),
        torch.tensor([20, 21]),
        answer_pos=torch.tensor([9]),
    )


def pooled(pooling, prompts=None, **options):
    prompts = prompts or fixture()
    plan = RowPlan.of(prompts, 10, **({"template_tokens": True, "offsets": ()} | options))
    return pool(torch.tensor(ROW)[None, None], plan, pooling)[0, 0].tolist()


@pytest.mark.parametrize(
    ("pooling", "weights", "share_of_a", "vote"),
    [
        ("span_max", (0.10, 0.30, 0.15), 0.25 / 0.55, 1),
        ("label", (0.05, 0.30, 0.15), 0.40, 1),
        ("span_sum", (0.20, 0.35, 0.25), 0.5625, 0),
        ("span_max_without_first", (0.05, 0.30, 0.15), 0.40, 1),
        ("span_sum_without_first", (0.10, 0.35, 0.25), 0.50, None),
        ("span_mean", (0.20 / 3, 0.35 / 3, 0.25 / 3), 0.5625, 0),
        ("span_mean_without_first", (0.05, 0.35 / 3, 0.25 / 3), (0.05 + 0.25 / 3) / (0.05 + 0.60 / 3), 0),
        ("label_sum", (0.05, 0.30, 0.15), 0.40, 1),
    ],
)
def test_the_hand_checkable_fixture(pooling, weights, share_of_a, vote):
    found = pooled(pooling)
    assert found == pytest.approx(weights)
    shares = kernel_regression(torch.tensor(found).reshape(1, 1, 1, 3), fixture().demo_labels, 2)
    assert shares.flatten().tolist() == pytest.approx([share_of_a, 1 - share_of_a])
    cast = hard_vote(shares).flatten().tolist()
    assert cast == ([0.5, 0.5] if vote is None else [float(vote == 0), float(vote == 1)])


@pytest.mark.parametrize(
    ("offsets", "positions"),
    [((0,), ((2,), (5,), (8,))), ((-1, 0), ((1, 2), (4, 5), (7, 8))), ((1,), ((3,), (6,), ()))],
)
def test_edges_are_the_tokens_at_some_offsets(offsets, positions):
    """The token behind the last label is the answer position, which is no edge: nothing is read there."""
    expected = [sum(ROW[at] for at in places) for places in positions]
    assert pooled("edges", offsets=offsets) == pytest.approx(expected)


def test_template_tokens_can_be_left_out():
    from dataclasses import replace

    prompts = fixture()
    roles = prompts.roles.clone()
    roles[0, [0, 3, 6]] = int(TokenRole.TEMPLATE)
    prompts = replace(prompts, roles=roles)
    assert pooled("span_sum", prompts, template_tokens=False) == pytest.approx([0.10, 0.33, 0.21])
    assert pooled("span_sum", prompts, template_tokens=True) == pytest.approx([0.20, 0.35, 0.25])


def test_several_label_tokens_are_summed_and_the_first_is_the_label():
    from dataclasses import replace

    prompts = fixture()
    spans = prompts.label_spans.clone()
    spans[0, 1] = torch.tensor([4, 6])
    prompts = replace(prompts, label_spans=spans)
    assert pooled("label_sum", prompts) == pytest.approx([0.05, 0.33, 0.15])
    assert pooled("label", prompts) == pytest.approx([0.05, 0.03, 0.15])


def test_a_demonstration_without_tokens_left_is_nan():
    prompts = PromptSet.from_tokens(
        torch.tensor([[20, 1, 1, 1, 1, 21, 1, 1, 1, 1]]),
        torch.tensor([[0, 5]]),
        torch.tensor([[0, 1]]),
        torch.tensor([20, 21]),
    )
    found = pooled("span_max_without_first", prompts)
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(0.30)


def test_the_averaged_row_against_numpy():
    prompts = fixture()
    plan = RowPlan.of(prompts, 10, offsets=(), template_tokens=True)
    found = resample(torch.tensor(ROW)[None, None], plan)[0, 0].numpy()
    row, grid = np.array(ROW), np.linspace(0, 1, 30)
    expected = []
    for start, label in ((0, 2), (3, 5), (6, 8)):
        expected += [np.interp(start + grid * (label - 1 - start), np.arange(10), row), [row[label]]]
    expected.append(np.full(30, row[9]))
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)


def test_an_unknown_pooling_is_refused_with_what_is_there():
    with pytest.raises(EvidenceMissing, match=r"'span_max' was asked for and \['label'\] are there"):
        head_vote(small_evidence(), pooling="span_max")


def test_a_token_beside_two_labels_counts_for_both():
    """Demonstrations of three tokens: two behind one label is one before the next."""
    assert pooled("edges", offsets=(-1, 2)) == pytest.approx([ROW[1] + ROW[4], ROW[4] + ROW[7], ROW[7]])
