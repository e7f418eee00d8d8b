"""The figures of label influence: each holds the numbers of its result, in its order, and no text becomes markup."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from charts.hostile import HOSTILE, SNEAKY, browse, has_live_markup, texts
from charts.located import run_info
from results.influence_made import BETA, drawn, kernel_of, made_influence
from support import needs_browser

from icl_kernel_lens.charts.influence import MOST_POINTS
from icl_kernel_lens.errors import EvidenceMissing, ResultError
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.label_influence import MOST_SHOWN, LabelInfluence


def data(figure, name):
    return figure.spec()["datasets"][name]


def everything(figure):
    """All rows of inline data, one after another."""
    return [row for rows in figure.spec()["datasets"].values() for row in rows]


def evidence_of(influence: LabelInfluence, weights: torch.Tensor) -> Evidence:
    """Evidence of the same prompts with these weights of every head."""
    layers, heads = weights.shape[1:3]
    points = influence.prompts.demos + 30 * (influence.prompts.demos + 1)
    width = influence.prompts.tokens.shape[1]
    shown = 2
    return replace(
        small_evidence(),
        prompts=influence.prompts,
        weights={"label": weights.float()},
        sink=torch.zeros(*weights.shape[:3]),
        label_scores=influence.scores[0],
        model_tokens=50 + influence.scores[0].argmax(-1),
        profile=torch.zeros(layers, heads, points),
        rows=torch.zeros(shown, layers, heads, width),
        run=run_info(layers, heads),
    )


def test_the_map_holds_one_set_in_reading_order_and_answers_together():
    influence = made_influence(kernel_of(30, 4), sets=3)
    figure = influence.figure(1)
    inputs, demos = data(figure, "inputs"), data(figure, "demos")
    members = (influence.demo_set == 1).nonzero()[:, 0].tolist()
    assert sorted(row["prompt"] for row in inputs) == members
    ranks = [row["rank"] for row in inputs]
    assert ranks == sorted(ranks), "test inputs of equal answers stand together"
    answers = influence.scores[0].argmax(-1)
    assert answers[members].tolist() != ranks, "which they do not in the prompts"
    for row in inputs:
        assert row["g"] == pytest.approx(influence.values[row["prompt"]].tolist(), abs=1e-4)
        assert row["rank"] == int(answers[row["prompt"]])
        assert row["column"] == f"{row['prompt']}  {row['answer']}"
    labels = influence.prompts.demo_labels[members[0]].tolist()
    assert [row["rank"] for row in demos] == labels
    assert [row["row"] for row in demos] == [f"{i}  token {50 + y}" for i, y in enumerate(labels)]
    said = influence.profile()
    said = said[said["order"] == 0]
    assert [row["influence"] for row in data(figure, "profile")] == pytest.approx(said["influence"].tolist())
    assert [row["low"] for row in data(figure, "profile")] == pytest.approx(said["low"].tolist())
    heat = figure.spec()["hconcat"][0]["layer"][0]["encoding"]["color"]
    low, high = heat["scale"]["domain"]
    assert -low == high == pytest.approx(influence.values[members].max().item(), abs=1e-4), "0 in the middle"


def test_without_a_set_the_one_that_varies_most_with_the_test_input():
    kernel = kernel_of()
    kernel[:8] = kernel[0]  # sets 0 and 1: the same weights whatever the test input
    influence = made_influence(kernel)
    figure = influence.figure()
    assert {row["prompt"] for row in data(figure, "inputs")} == {8, 9, 10, 11}
    assert "set 2 of 3, in which G varies most with the test input" in " ".join(texts(figure.svg()))
    alone = made_influence(kernel_of(3), sets=3)
    said = " ".join(texts(alone.figure().svg()))
    assert "in which G varies most;" in said
    for wrong in (7, -1):
        with pytest.raises(ResultError, match=f"no prompt is of set {wrong}"):
            influence.figure(wrong)


def test_what_was_not_replaced_is_grey():
    """Neither left out nor drawn as an influence of 0; and no interval is no line."""
    figure = made_influence(blank=True).figure(0)
    assert all(row["g"][1] is None for row in data(figure, "inputs"))
    assert data(figure, "profile")[1]["influence"] is None
    assert figure.svg().count('fill="#bbb"') == 4, "one of each test input"
    assert any("grey: no other label" in word for word in texts(figure.svg()))
    assert not any("grey" in word for word in texts(made_influence().figure(0).svg()))
    assert made_influence(sets=1).figure().png().startswith(b"\x89PNG")


def test_many_demonstrations_and_test_inputs_stay_small():
    influence = made_influence(kernel_of(160, 64), sets=1, labels=4)
    figure = influence.figure()
    assert len(json.dumps(figure.spec())) < 90_000
    assert len(data(figure, "inputs")) == 64
    assert any("64 of 160 test inputs of the set are drawn" in word for word in texts(figure.svg()))
    heat = figure.spec()["hconcat"][0]
    assert heat["height"] < 600
    assert heat["width"] < 600
    longer = made_influence(kernel_of(60, 200), sets=1).figure()
    assert len(data(longer, "inputs")) == 30, "fewer of longer prompts"


def test_one_prompt_beside_heads():
    """A head with the model's own weights has its profile, twice β apart."""
    kernel = kernel_of()
    influence = made_influence(kernel)
    weights = torch.stack([0.5 * kernel, torch.full_like(kernel, 0.1)], 1)[:, :, None].expand(-1, 2, 2, -1)
    figure = influence.prompt_figure(evidence_of(influence, weights), ["L0H1", (1, 0)], prompt=5)
    panels = figure.spec()["vconcat"]
    assert len(panels) == 3
    rows = everything(figure)
    own = [row["value"] for row in rows if "value" in row]
    assert own[:4] == pytest.approx((2 * BETA * kernel[5]).tolist(), abs=1e-4)
    assert own[4:8] == pytest.approx(kernel[5].tolist(), abs=1e-4)
    assert own[8:] == pytest.approx([0.25] * 4)
    words = texts(figure.svg())
    assert "L0H1: kernel weights; attention on the demonstrations 0.50" in words
    answer = influence.prompts.label_words[5][int(influence.scores[0, 5].argmax())]
    assert any(f"prompt 5: the model answers {answer}, the true label is token 52" in word for word in words)


def test_what_one_prompt_refuses():
    influence = made_influence()
    evidence = evidence_of(influence, torch.full((12, 2, 2, 4), 0.1))
    with pytest.raises(ResultError, match="there are prompts 0 to 11; got prompt 12"):
        influence.prompt_figure(evidence, ["L0H0"], prompt=12)
    with pytest.raises(ResultError, match="there is no head L2H0"):
        influence.prompt_figure(evidence, ["L2H0"])
    with pytest.raises(ResultError, match=f"1 to {MOST_SHOWN} heads; got 0"):
        influence.prompt_figure(evidence, [])
    with pytest.raises(EvidenceMissing, match="span_max"):
        influence.prompt_figure(evidence, ["L0H0"], pooling="span_max")
    with pytest.raises(ResultError, match="of the same prompts and the same model"):
        influence.prompt_figure(small_evidence(), ["L0H0"])
    with pytest.raises(ResultError, match="of the same prompts and the same model"):
        influence.prompt_figure(replace(evidence, run=run_info(2, 2, model="another")), ["L0H0"])


def test_joint_effects_against_sums():
    """What is drawn is one class against the others, whether it adds up or not."""
    exact = made_influence()
    for row in everything(exact.additivity_figure("log_odds")):
        assert row.get("observed", 0) == pytest.approx(row.get("summed", 0), abs=2e-4)
    influence = replace(exact, joint=exact.joint + 0.1 * drawn(7, *exact.joint.shape))
    figure = influence.additivity_figure("log_odds")
    points = [row for row in everything(figure) if "observed" in row]
    observed, summed = influence.joint_effects("log_odds")
    assert len(points) == 3 * 8, "of the prompts that were run so"
    reference = influence.scores[0].argmax(-1)
    for row in points:
        at = ["two demonstrations", "half of them", "all of them"].index(row["pattern"].split(",")[0])
        p, c = row["prompt"], reference[row["prompt"]]
        for name, x in (("observed", observed), ("summed", summed)):
            assert row[name] == pytest.approx(
                float(x[at, p, c] - (x[at, p].sum() - x[at, p, c]) / 2), abs=1e-4
            )
    words = " ".join(texts(figure.svg()))
    found = influence.additivity("log_odds")
    assert f"Do single effects add up? R² {found.r2}, slope {found.slope}" in words
    assert f"all of them, R² {influence.additivity('log_odds', 'all').r2.value:.2f}" in words
    assert "logits" in words
    bent = influence.additivity_figure("probability")
    assert "probability" in " ".join(texts(bent.svg()))
    assert [r["observed"] for r in everything(bent) if "observed" in r] != [row["observed"] for row in points]


def test_of_very_many_points_some_are_drawn():
    influence = made_influence(kernel_of(3000), sets=2)
    figure = influence.additivity_figure("log_odds")
    assert len([row for row in everything(figure) if "observed" in row]) <= MOST_POINTS
    assert any("3th of 4,500 points is drawn" in word for word in texts(figure.svg()))


def hostile() -> LabelInfluence:
    influence = made_influence()
    prompts = influence.prompts
    strings = tuple(
        tuple((HOSTILE, SNEAKY, "a\u2028b", "\x00")[i % 4] for i in range(len(row)))
        for row in prompts.strings
    )
    words = tuple((HOSTILE, SNEAKY, "'];alert(1)//") for _ in prompts.label_words)
    return replace(
        influence,
        prompts=replace(prompts, strings=strings, label_words=words),
        run=run_info(2, 2, SNEAKY, HOSTILE),
    )


def figures(influence: LabelInfluence) -> dict:
    evidence = evidence_of(influence, torch.full((12, 2, 2, 4), 0.1))
    evidence = replace(evidence, run=influence.run)
    return {
        "set": influence.figure(),
        "prompt": influence.prompt_figure(evidence, ["L0H0"]),
        "additivity": influence.additivity_figure(),
    }


def test_text_of_data_is_text(tmp_path):
    influence = hostile()
    for name, figure in figures(influence).items():
        for suffix in (".html", ".svg"):
            written = figure.save(tmp_path / f"{name}{suffix}").read_text()
            assert not has_live_markup(written)
        assert figure.png().startswith(b"\x89PNG")
    assert not has_live_markup(influence._repr_html_())
    assert "alert(1)" in (tmp_path / "set.html").read_text()


@needs_browser
@pytest.mark.browser
def test_figures_open_offline_without_an_error(tmp_path):
    for name, figure in figures(hostile()).items():
        dom, console = browse(figure.save(tmp_path / f"{name}.html"), tmp_path)
        assert console == []
        assert 'class="marks"' in dom
