"""What is said of the model's own kernel: verdicts of models made by hand, and the numbers behind them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from results.influence_made import BETA, kernel_of, made_influence

from icl_kernel_lens import label_influence, load, load_task
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.influence import Estimate
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.label_influence import LEAST_ADDITIVE, SCALES, LabelInfluence


@pytest.fixture(scope="module")
def real(mini) -> LabelInfluence:
    prompts = load_task("topics").prompts(mini, demos=8, count=48, sets=16, seed=0)
    return label_influence(mini, prompts, progress=False)


def scored(real: LabelInfluence, score) -> LabelInfluence:
    """The result of a model whose label scores are `score(order, labels)` (prompt, label), computed here."""
    prompts = real.prompts
    orders = range(len(real.places))
    own = prompts.demo_labels
    replaced = real.replaced.clone()
    for order in orders:
        for demo in range(prompts.demos):
            for label in range(prompts.labels):
                changed = own.clone()
                changed[:, demo] = label
                there = own[:, demo] != label
                replaced[order, there, demo, label] = score(order, changed)[there]
    shifted = torch.stack([score(0, (own + by) % prompts.labels) for by in range(prompts.labels)], 1)
    joint = torch.stack([score(0, labels) for labels in real.pattern_labels])
    return replace(
        real,
        scores=torch.stack([score(order, own) for order in orders]),
        replaced=replaced,
        shifted=shifted,
        joint=joint.masked_fill(real.joint.isnan(), torch.nan),
    )


def vote(real: LabelInfluence, weights):
    """Label scores of a vote with weights `weights(order)` (prompt, demo), numbered as in the first order."""
    classes = real.prompts.labels

    def score(order, labels):
        return torch.einsum(
            "pi,pic->pc", weights(order), torch.nn.functional.one_hot(labels, classes).float()
        )

    return score


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def places(real: LabelInfluence, order: int, by_place: torch.Tensor) -> torch.Tensor:
    return by_place[real.places[order]]


def test_a_vote_weighted_by_pairs_is_kernel_regression(real):
    kernel = draw(48, 8).exp()
    found = scored(real, vote(real, lambda _: kernel))
    torch.testing.assert_close(found.values, 2 * kernel, atol=1e-4, rtol=0)
    part = found.kernel_part()
    assert part.found == "real"
    assert part.across.value == pytest.approx(part.within.value, abs=1e-4), "nothing depends on the order"
    assert found.additivity().r2.value == pytest.approx(1)
    assert found.scale == "log_odds"
    assert found.verdict().startswith("Kernel regression")
    assert found.negative()[0].value == 0


@pytest.mark.parametrize(
    ("by_place", "says"),
    [
        ([0.01] * 7 + [2.0], "Habit of the last label"),
        ([2.0] + [0.01] * 7, "Habit of the first label"),
        ([1.0] * 8, "Even vote"),
    ],
)
def test_votes_by_place_alone(real, by_place, says):
    weights = torch.tensor(by_place)
    found = scored(
        real, vote(real, lambda order: places(real, order, weights) + 1e-4 * draw(48, 8, seed=order))
    )
    assert found.verdict().startswith(says)
    assert found.kernel_part().found == "none"
    assert "no kernel regression to locate" in found.verdict()
    mean = found.profile()
    assert mean[mean["order"] == 1]["influence"].tolist() == pytest.approx(
        [2 * w for w in by_place], abs=1e-3
    )


@pytest.mark.parametrize("kernel", [True, False])
def test_that_labels_add_up_is_said_where_it_is_known(real, monkeypatch, kernel):
    """An interval that reaches below what additive means leaves it open, whatever labels are weighted by."""
    weights = draw(48, 8).exp()
    if not kernel:
        weights = torch.ones(48, 8)
    found = scored(real, vote(real, lambda order: weights + 1e-4 * draw(48, 8, seed=order)))
    assert "labels add up" in found.verdict()
    sure = found.additivity()
    for low, open_ in ((LEAST_ADDITIVE, False), (-5.9, True), (float("nan"), True)):
        wide = sure._replace(r2=Estimate(0.9, low, 0.95))
        monkeypatch.setattr(LabelInfluence, "additivity", lambda *_, wide=wide: wide)
        said = found.verdict()
        assert ("labels add up" not in said) is open_
        assert ("whether they add up is not known (R² 0.90" in said) is open_
        assert ("pairs of test input and demonstration" in said) is kernel


def test_a_gain_of_the_test_input_is_no_kernel_part(real):
    """Salience: weights of the demonstration alone, times a gain of the test input, with noise of its own in each order."""
    salient = draw(int(real.demo_set.max()) + 1, 8).exp()[real.demo_set]
    gain = draw(48, 1, seed=1).exp()
    found = scored(real, vote(real, lambda order: gain * salient + 0.05 * draw(48, 8, seed=order + 2)))
    part = found.kernel_part()
    assert part.found == "none", part
    varies = found.values - torch.stack([found.values[found.demo_set == s].mean(0) for s in found.demo_set])
    assert float(varies.square().sum()) > 0.1 * float((found.values - found.values.mean()).square().sum())


def test_a_small_kernel_is_real_and_tiny(real):
    kernel, even = draw(48, 8), torch.linspace(0.2, 3, 8)
    found = scored(real, vote(real, lambda order: places(real, order, even) + 0.05 * kernel))
    part = found.kernel_part()
    assert part.found == "tiny"
    assert 0 < part.across.value < 0.01
    assert "real and tiny" in found.verdict()


def test_labels_that_do_nothing(real):
    prior = draw(48, real.prompts.labels)
    found = scored(real, lambda order, labels: prior + 1e-4 * labels.float().sum(1, keepdim=True).sin())
    assert found.verdict().startswith("No dependence on labels")
    some = scored(
        real, lambda order, labels: prior + 0.01 * vote(real, lambda _: torch.ones(48, 8))(0, labels)
    )
    assert some.verdict().startswith("No dependence on labels")
    assert not found.has_label_part
    kernel = vote(real, lambda _: draw(48, 8, seed=1).exp())
    small = scored(real, lambda order, labels: prior + 0.01 * kernel(order, labels))
    assert small.kernel_part().found == "real", "of what labels do, however little"
    assert not small.has_label_part
    assert not small.has_kernel_part, "there is next to nothing that a head could be part of"


def test_what_needs_all_labels_is_not_additive(real):
    def parity(order, labels):
        sign = 1 - 2.0 * (labels.sum(1) % 2)
        return torch.stack([sign, -sign], 1) * (1 + 0.1 * draw(48, 1).abs())

    found = scored(real, parity)
    assert found.verdict().startswith("Not additive")
    assert found.additivity(found.scale).r2.value < 0.5


def test_label_part_and_prior_add_up_to_the_scores(real):
    part, prior = real.label_part(), real.prior()
    own = real.scores[0]
    answer = own.argmax(-1)
    difference = own.gather(1, answer[:, None])[:, 0] - own.gather(1, 1 - answer[:, None])[:, 0]
    assert part.value + prior.value == pytest.approx(float(difference.mean()), abs=1e-4)
    # For two labels t is half of what exchanging all labels does.
    exchanged = real.shifted[:, 0] - real.shifted[:, 1]
    half = 0.5 * (exchanged.gather(1, answer[:, None]) - exchanged.gather(1, 1 - answer[:, None]))
    assert part.value == pytest.approx(float(half.mean()), abs=1e-4)
    assert real.label_part("truth").value == pytest.approx(part.value, rel=0.05), "mini is right"


def test_kernels_are_compared_on_sets_held_out(real):
    kernel = draw(48, 8).exp()
    found = scored(real, vote(real, lambda _: kernel))
    table = found.compares({"itself": kernel, "noise": draw(48, 8, seed=5)}).set_index("kernel")
    assert table.loc["itself", "r2"] == pytest.approx(1, abs=1e-4)
    assert table.loc["noise", "r2"] < 0.05
    assert table.loc["together", "r2"] > 0.98
    with pytest.raises(ResultError, match="at least one"):
        found.compares({})
    with pytest.raises(ResultError, match=r"'short' has shape \(3, 8\)"):
        found.compares({"short": draw(3, 8)})
    with pytest.raises(ResultError, match="all of these prompts are of one set"):
        made_influence(sets=1).compares({"itself": kernel_of()})


def test_shares_of_places_leave_out_what_was_not_replaced():
    whole = made_influence()
    some = replace(whole, replaced=whole.replaced.clone())
    some.replaced[:, ::2, -1] = torch.nan
    mean = some.influence().double().nanmean(0)
    assert bool((mean > 0).all())
    assert float(mean[-1]) == pytest.approx(float(whole.influence()[1::2, -1].double().mean()))
    for place in (0, -1):
        assert some.at_place(place).value == pytest.approx(float(mean[place] / mean.abs().sum()))
    with pytest.raises(ResultError, match="from 0 to 3, or from the last, −1, to −4; got 4"):
        some.at_place(4)
    with pytest.raises(ResultError, match="orders 0 to 1; got order 2"):
        some.influence(order=2)


def test_a_habit_whatever_the_gain(real):
    """All of it at the last place, by gains that differ wildly between sets: its share is 1, and sure."""
    gain = (1.5 * draw(16, seed=3)).exp()[real.demo_set]
    last = torch.zeros(8)
    last[-1] = 1
    found = scored(
        real,
        vote(
            real, lambda order: gain[:, None] * (places(real, order, last) + 0.02 * draw(48, 8, seed=order))
        ),
    )
    share = found.at_place(-1)
    assert share.low > 0.9
    assert found.verdict().startswith("Habit of the last label")


def test_what_place_and_test_input_do_is_no_kernel_part(real):
    """Some test inputs lean on late places, others on early ones: in no order does it hang on the demonstration."""
    slope = torch.linspace(-1, 1, 8)
    called = 0
    for trial in range(20):
        lean = draw(48, 1, seed=trial)
        given = replace(
            real,
            places=torch.stack(
                [
                    torch.arange(8).expand(48, -1),
                    draw(16, 8, seed=100 + trial).argsort(1).argsort(1)[real.demo_set],
                ]
            ),
            seed=trial,
        )
        noise = [0.1 * draw(48, 8, seed=1000 + 2 * trial + order) for order in range(2)]
        found = scored(
            given, vote(given, lambda o, g=given, n=noise, u=lean: 1 + u * places(g, o, slope) + n[o])
        )
        called += found.kernel_part().found != "none"
    assert called <= 4, "5 % of 20 is 1; four or more have a probability below 2 %"


def test_a_kernel_of_unknown_size_is_said_to_be_so(real):
    """Three of sixteen sets have one."""
    kernel = 2 * draw(48, 8, seed=3).exp() * (real.demo_set < 3)[:, None]
    place = torch.linspace(0, 3, 8)
    found = scored(
        real,
        vote(real, lambda order: kernel + places(real, order, place) + 0.3 * draw(48, 8, seed=50 + order)),
    )
    part = found.kernel_part()
    assert part.found == "tiny"
    assert part.across.low < 0.01
    assert part.across.high > 0.05
    assert "its size is not known" in found.verdict()
    assert "Even vote" not in found.verdict()


def test_summary_and_frames_say_it_all(real):
    summary = real.summary()
    assert not summary["value"].isna().any()
    assert {"logits", "share"} <= set(summary["on"])
    frame = real.to_dataframe()
    assert len(frame) == 2 * 48 * 8
    assert {"order", "prompt", "demo", "place", "label", *SCALES} == set(frame.columns)
    text = repr(real)
    assert text.startswith("The demonstrations help")
    assert "additivity R²" in text


def test_without_shared_sets_or_orders_it_says_why(mini):
    task = load_task("topics")
    alone = label_influence(mini, task.prompts(mini, demos=4, count=9, seed=0), progress=False)
    assert alone.kernel_part().undefined is Reason.NO_SHARED_SETS
    assert "undetermined" in alone.verdict()
    assert "Even vote" not in alone.verdict(), "the test input never varied alone"
    one = label_influence(
        mini, task.prompts(mini, demos=4, count=8, sets=4, seed=0), orders=1, progress=False
    )
    assert one.kernel_part().undefined is Reason.ONE_ORDER
    assert one.kernel_part().within.value > 0
    with pytest.raises(ResultError, match="within demonstration sets"):
        alone.compares({"x": torch.ones(9, 4)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: {"places": r.places.flip(-1)}, "first order must be"),
        (lambda r: {"places": torch.zeros_like(r.places)}, "stand at one place"),
        (lambda r: {"scores": r.scores * torch.nan}, "must be finite"),
        (lambda r: {"replaced": torch.zeros_like(r.replaced)}, "replaced by itself"),
        (lambda r: {"replaced": r.replaced * torch.nan}, "at least must have"),
        (lambda r: {"patterns": r.patterns[:-1]}, "patterns must be named"),
        (lambda r: {"pattern_labels": r.pattern_labels + 5}, "must be classes"),
    ],
)
def test_what_is_not_whole_is_refused(real, change, says):
    with pytest.raises(ResultError, match=says):
        replace(real, **change(real))


def test_undefined_intervals_are_left_out_of_the_words():
    assert "nan" not in str(Estimate(0.5, float("nan"), float("nan")))


def test_a_kernel_regression_over_labels_is_twice_its_weights():
    """Whatever the number of labels, in every order; and additive."""
    kernel = kernel_of()
    for labels in (2, 3, 5):
        influence = made_influence(kernel, labels=labels)
        for order in range(2):
            torch.testing.assert_close(influence.influence(order=order), 2 * BETA * kernel)
        found = influence.additivity()
        assert found.r2.value == pytest.approx(1)
        assert found.slope.value == pytest.approx(1)
        assert influence.negative()[0].value == 0
        assert influence.at_place(-1).value == pytest.approx(float(kernel[:, -1].sum() / kernel.sum()))


def test_labels_that_only_switch_what_is_known_are_not_learned():
    """A demonstration counts with its own label and brings nothing with another; of two labels it is a kernel, and a prior."""
    for labels in (2, 3, 5):
        influence = made_influence(labels=labels)
        assert influence.gained().value == pytest.approx(0.5)
        replaced = influence.replaced.clone()
        replaced.diagonal(dim1=-2, dim2=-1).sub_(BETA * kernel_of()[..., None])
        switched = replace(influence, replaced=replaced)
        assert switched.gained().value == pytest.approx(0.5 if labels == 2 else 0, abs=1e-6)
        assert switched.verdict().startswith("Labels do not stand in for one another") == (labels > 2)
        replaced.diagonal(dim1=-2, dim2=-1).add_(2 * BETA * kernel_of()[..., None])
        own = torch.nn.functional.one_hot(influence.prompts.demo_labels, labels)[:, :, None]
        brought = replace(influence, replaced=replaced + BETA * kernel_of()[..., None, None] * own)
        assert brought.gained().value == pytest.approx(0.5 if labels == 2 else 1, abs=1e-6), (
            "and takes nothing"
        )
        frame = switched.summary().set_index("what")
        assert frame.loc["gained by the label put in", "value"] == switched.gained().value


def test_tables_in_long_form():
    influence = made_influence(blank=True)
    frame = influence.to_dataframe()
    orders, prompts, demos = influence.places.shape
    assert list(frame) == ["order", "prompt", "demo", "place", "label", *SCALES]
    assert len(frame) == orders * prompts * demos
    for row in frame.sample(20, random_state=0).to_dict("records"):
        at = row["order"], row["prompt"], row["demo"]
        assert row["place"] == int(influence.places[at])
        assert row["label"] == int(influence.prompts.demo_labels[at[1:]])
        for scale in SCALES:
            expected = float(influence.influence(scale, at[0])[at[1:]])
            assert row[scale] == pytest.approx(expected, nan_ok=True)
    assert frame[frame["demo"] == 1]["log_odds"].isna().all(), "what was not replaced is no 0"
    assert set(influence.profile()["order"]) == {0, 1}


def test_every_tensor_has_its_axes_in_xarray():
    influence = made_influence()
    found = influence.to_xarray()
    axes = {name: found[name].dims for name in ("scores", "replaced", "places", "shifted", "joint")}
    assert axes == {
        "scores": ("order", "prompt", "label"),
        "replaced": ("order", "prompt", "demo", "replacement", "label"),
        "places": ("order", "prompt", "demo"),
        "shifted": ("prompt", "shift", "label"),
        "joint": ("pattern", "prompt", "label"),
    }
    assert found["replaced"].attrs["units"] == "logits"
    torch.testing.assert_close(torch.from_numpy(found["replaced"].values), influence.replaced, equal_nan=True)
    assert found.attrs["kind"] == "LabelInfluence"


def test_it_is_saved_whole_and_found_by_its_file(tmp_path):
    influence = made_influence()
    again = load(influence.save(tmp_path / "x.safetensors"))
    assert again.to_dataframe().equals(influence.to_dataframe())
    assert again.verdict() == influence.verdict()
    assert again.figure().spec() == influence.figure().spec()


def test_how_it_shows_itself():
    influence = made_influence()
    shown = influence._repr_html_()
    assert shown.startswith(f"<pre>{influence.accuracy.verdict()[:20]}")
    assert influence.verdict()[:40] in shown
    assert 'src="data:image/png;base64,' in shown, "its figure, where scripts do not run"
