"""The object that interventions return: its summaries, its axes, its file, its figure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from icl_kernel_lens import knock_out, load_task, patch_labels
from icl_kernel_lens.errors import LoadError, ResultError
from icl_kernel_lens.results import codec
from icl_kernel_lens.results.patch_effects import PatchEffects


@pytest.fixture(scope="module")
def effects(mini):
    prompts = load_task("topics").prompts(mini, demos=4, count=12, seed=0)
    return knock_out(mini, prompts, progress=False), prompts


def test_summaries(effects):
    found, prompts = effects
    values, base = found.values, found.base
    assert found.places == {"layer": (0, 1, 2), "head": (0, 1, 2, 3)}
    torch.testing.assert_close(found.mean(), (values - base[:, None, None]).mean(0))
    low, high = found.interval(draws=500)
    assert (low <= found.mean()).all()
    assert (found.mean() <= high).all()
    answers = found.label_scores.argmax(-1)
    before = found.base_label_scores.argmax(-1)
    torch.testing.assert_close(found.flips(), (answers != before[:, None, None]).float().mean(0))
    right = (answers == prompts.test_labels[:, None, None]).float().mean(0)
    torch.testing.assert_close(found.accuracy(prompts.test_labels), right)
    torch.testing.assert_close(
        found.effect("probability"),
        found.others["probability"] - found.base_others["probability"][:, None, None],
    )
    assert found.effect("kl").min() >= 0
    table = found.table()
    assert len(table) == 12
    assert table["effect"].abs().is_monotonic_decreasing
    assert list(table.columns) == ["layer", "head", "effect", "low", "high", "random_keys", "equal_mass"]
    first = found.mean().abs().argmax().item()
    assert table["head"][0] == f"L{first // 4}H{first % 4}"
    frame = found.to_dataframe()
    assert len(frame) == 12 * 12
    row = frame.iloc[17]
    cell = (int(row["prompt"]), int(row["layer"]), int(row["head"]))
    assert row["logit_difference"] == pytest.approx(float(found.values[cell]))


def test_normalised_is_a_ratio_of_means(effects):
    found, prompts = effects
    with pytest.raises(ResultError, match="there are 3 for 12 prompts"):
        found.accuracy(prompts.test_labels[:3])
    with pytest.raises(ResultError, match="needs a second run"):
        found.normalised()
    source = found.base + torch.linspace(3, 5, 12)
    patched = replace(found, source=source)
    expected = (found.values.mean(0) - found.base.mean()) / (source.mean() - found.base.mean())
    torch.testing.assert_close(patched.normalised(), expected, atol=1e-5, rtol=1e-4)
    gap = torch.tensor([1.0, -1.2] * 6)
    for nothing in (gap, 0 * gap, 1e-6 + 0 * gap):
        with pytest.raises(ResultError, match="must differ in the mean"):
            replace(found, source=found.base + nothing).normalised()


def test_saved_and_loaded(effects, estimated, tmp_path):
    found, _ = effects
    back = PatchEffects.load(found.save(tmp_path / "effects.safetensors"))
    assert repr(back) == repr(found)
    for name in ("values", "base", "label_scores", "reference", "demo_set"):
        torch.testing.assert_close(getattr(back, name), getattr(found, name), equal_nan=True)
    for name in ("others", "base_others", "controls"):
        assert list(getattr(back, name)) == list(getattr(found, name))
    assert back.run == found.run
    assert back.settings == found.settings
    back = PatchEffects.load(estimated.save(tmp_path / "estimates.safetensors"))
    assert back.label_scores is None
    assert back.sample.cells == estimated.sample.cells
    assert back.sample.correlation == pytest.approx(estimated.sample.correlation)
    assert torch.equal(back.source, estimated.source)


def turned(prompts):
    """The same prompts with the two labels exchanged."""
    labels = 1 - prompts.demo_labels
    tokens = prompts.tokens.scatter(1, prompts.label_pos, prompts.label_tokens.gather(1, labels))
    return replace(prompts, demo_labels=labels, tokens=tokens)


@pytest.fixture(scope="module")
def estimated(effects, mini):
    """First-order estimates at two offsets, of a few heads."""
    return patch_labels(
        mini,
        clean=effects[1],
        corrupted=turned(effects[1]),
        method="attribution",
        offsets=(-1, 0),
        heads=["L2H1", "L2H3", "L0H0"],
        progress=False,
    )


def test_axes_say_what_they_are(effects, estimated, mini):
    """In the table, the long form and xarray: heads, offsets, demonstrations, key-value heads, layers and sets."""
    prompts = effects[1]
    options = {"clean": prompts, "corrupted": turned(prompts), "progress": False}
    each = knock_out(
        mini, prompts, heads=[["L2H1", "L2H3"], "L0H0"], demo="each", controls=False, progress=False
    )
    for found, axes, coords in (
        (estimated, ("layer", "head", "offset"), {"offset": [-1, 0]}),
        (each, ("set", "demo"), {"set": ["L2H1 L2H3", "L0H0"], "demo": [0, 1, 2, 3]}),
        (patch_labels(mini, activation="value", at="answer", **options), ("layer", "kv_head"), {}),
        (
            patch_labels(mini, activation="residual", offsets=(3,), **options),
            ("layer", "offset"),
            {"offset": [3]},
        ),
        (
            patch_labels(mini, activation="mlp_output", at="answer", **options),
            ("layer",),
            {"layer": [0, 1, 2]},
        ),
    ):
        assert tuple(found.places) == axes
        assert tuple(found.values.shape[1:]) == tuple(map(len, found.places.values()))
        assert list(found.table().columns[: len(axes)]) == list(axes)
        frame = found.to_dataframe()
        assert list(frame.columns[: len(axes) + 1]) == ["prompt", *axes]
        row = frame.iloc[-1]
        cell = [list(found.places[axis]).index(row[axis]) for axis in axes]
        assert row["logit_difference"] == pytest.approx(float(found.values[(int(row["prompt"]), *cell)]))
        data = found.to_xarray()
        assert data["values"].dims == ("prompt", *axes)
        assert data["values"].attrs["units"] == "logits"
        for axis, names in coords.items():
            assert data[axis].values.tolist() == names
        picked = data["values"].sel({axis: row[axis] for axis in axes}).values[int(row["prompt"])]
        np.testing.assert_allclose(picked, row["logit_difference"], rtol=1e-6)
    assert set(estimated.table()["head"]) == {"L2H1", "L2H3", "L0H0"}
    assert "of 12 random cells" not in repr(estimated)
    assert "of 6 random cells" in repr(estimated)


def test_only_swaps_make_predictions(effects):
    with pytest.raises(
        ResultError, match="only swap_values makes predictions.*knock_out of answer_reads_labels"
    ):
        effects[0].prediction()


def test_what_is_not_whole_is_refused(effects, estimated, mini, tmp_path):
    """When it is made, and when it is loaded, though the digest of the file is right."""
    found, prompts = effects
    places = {"layer": (0, 1, 2), "head": (0, 1, 2, 3)}
    sample = estimated.sample
    for whole, change, reason in (
        (found, {"places": {"layer": (0, 1, 2)}}, "as many as the cells"),
        (found, {"places": {**places, "head": (0, 1)}}, "as many as the cells"),
        (found, {"places": {"layer": (0, 1, 2), "part": (0, 1, 2, 3)}}, "its axes must be"),
        (found, {"places": {"head": (0, 1, 2, 3), "layer": (0, 1, 2)}}, "its axes must be"),
        (found, {"places": {**places, "head": ("0", "1", "2", "3")}}, "otherwise numbers"),
        (found, {"controls": {"low": found.values}}, "names of their own"),
        (found, {"controls": {"kl": found.values}}, "names of their own"),
        (found, {"reference": found.reference + 2}, "reference classes"),
        (estimated, {"sample": replace(sample, cells=sample.cells[:-1])}, "must hold an estimate"),
        (estimated, {"sample": replace(sample, cells=((9, 0, 0), *sample.cells[1:]))}, "among those of"),
        (estimated, {"largest": replace(sample, exact=sample.exact[:, :1])}, "must hold an estimate"),
    ):
        with pytest.raises(ResultError, match=f"must be whole.*{reason}"):
            replace(whole, **change)
    stored = codec.read(found.save(tmp_path / "effects.safetensors"))
    broken = tmp_path / "broken.safetensors"
    for data, tensors in (
        (stored.data | {"places": [["layer", [0, 1, 2]], ["head", [0, 1]]]}, stored.tensors),
        (stored.data | {"places": [["layer", [0, 1, 2]], ["head", [0, 1, 2, True]]]}, stored.tensors),
        (stored.data | {"reasons": [["bad weather", 3]]}, stored.tensors),
        ({k: v for k, v in stored.data.items() if k != "title"}, stored.tensors),
        (stored.data, {k: v for k, v in stored.tensors.items() if k != "base"}),
        *(
            (stored.data, {**stored.tensors, k: stored.tensors[k][:-1]})
            for k in ("label_scores", "others.kl", "controls.random_keys", "base", "demo_set")
        ),
    ):
        codec.write(broken, codec.Stored(stored.kind, data, tensors))
        with pytest.raises(LoadError, match="does not hold a whole PatchEffects"):
            PatchEffects.load(broken)
    sets = knock_out(mini, prompts, heads=[[(2, 1), (2, 3)]], progress=False)
    back = PatchEffects.load(sets.save(tmp_path / "sets.safetensors"))
    assert back.places == {"set": ("L2H1 L2H3",)}


def test_figures_of_heads_layers_and_sets(effects, estimated, mini, tmp_path):
    """Every kind is drawn, with its control; a head that could not be run keeps its place."""
    found, prompts = effects
    options = {"clean": prompts, "corrupted": turned(prompts), "progress": False}
    drawn = {
        "heads": found,
        "layers": patch_labels(mini, activation="residual", offsets=(-1, 0), **options),
        "offsets": patch_labels(mini, offsets=(-1, 0), heads=[(2, 1)], **options),
        "demonstrations": patch_labels(mini, offsets=(-2, -1, 0, 1, 2, 3, 4), **options),
        "answers": patch_labels(mini, activation="residual", at="answer", **options),
        "estimates": estimated,
        "each demonstration": knock_out(mini, prompts, demo="each", controls=False, progress=False),
        "sets": knock_out(mini, prompts, heads=[[(2, 1), (2, 3)]], progress=False),
    }
    for name, effect in drawn.items():
        figure = effect.figure()
        assert figure.save(tmp_path / f"{name}.png").stat().st_size > 5000
        assert effect.intervention in figure.title
        assert "<img" in effect._repr_html_()
    spec = drawn["offsets"].figure().spec()
    cells = [d for row in spec["vconcat"] for chart in row["concat"] for d in chart["data"]["values"]]
    assert sum(cell["effect"] is None for cell in cells) == 2 * 11
