"""Label influence by hand: a kernel regression has G = 2 β w, whose numbers are known; its tables, its file, how it is shown."""

from __future__ import annotations

import pytest
import torch
from results.influence_made import BETA, kernel_of, made_influence

from icl_kernel_lens import load
from icl_kernel_lens.results.label_influence import SCALES


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
