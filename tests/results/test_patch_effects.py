"""The object that interventions return: its summaries, its file, its figure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch


@pytest.fixture(scope="module")
def effects(mini):
    from icl_kernel_lens import knock_out, load_task

    prompts = load_task("topics").prompts(mini, demos=4, count=12, seed=0)
    return knock_out(mini, prompts, progress=False), prompts


def test_the_difference_is_the_right_label_against_the_mean_of_the_others():
    from icl_kernel_lens.interventions.measure import logit_difference, measures

    scores = torch.tensor([[3.0, 1.0, 5.0], [0.0, 2.0, 4.0]])
    found = logit_difference(scores, torch.tensor([2, 0]))
    torch.testing.assert_close(found, torch.tensor([5 - 2.0, 0 - 3.0]))
    logits = torch.randn(4, 11, generator=torch.Generator().manual_seed(0))
    numbers = measures(logits, logits[0], torch.tensor([7, 2]), 1)
    torch.testing.assert_close(numbers["probability"], logits.softmax(-1)[:, 2])
    torch.testing.assert_close(numbers["label_scores"], logits[:, [7, 2]])
    for row in range(4):
        p, q = logits[0].softmax(-1), logits[row].softmax(-1)
        expected = float((p * (p / q).log()).sum())
        assert float(numbers["kl"][row]) == pytest.approx(expected, abs=1e-5)
    infinite = torch.tensor([0.0, -torch.inf, 1.0])
    assert float(measures(infinite[None], infinite, torch.tensor([0, 2]), 0)["kl"][0]) == pytest.approx(
        0, abs=1e-6
    )


def test_summaries(effects):
    found, prompts = effects
    values, base = found.values[..., 0], found.base
    torch.testing.assert_close(found.mean()[..., 0], (values - base[:, None, None]).mean(0))
    low, high = found.interval(draws=500)
    assert (low <= found.mean()).all()
    assert (found.mean() <= high).all()
    answers = found.label_scores[..., 0, :].argmax(-1)
    before = found.base_label_scores.argmax(-1)
    torch.testing.assert_close(found.flips()[..., 0], (answers != before[:, None, None]).float().mean(0))
    right = (answers == prompts.test_labels[:, None, None]).float().mean(0)
    torch.testing.assert_close(found.accuracy(prompts.test_labels)[..., 0], right)
    torch.testing.assert_close(
        found.effect("probability"),
        found.others["probability"] - found.base_others["probability"][:, None, None, None],
    )
    assert found.effect("kl").min() >= 0
    table = found.table()
    assert len(table) == 12
    assert table["effect"].abs().is_monotonic_decreasing
    assert set(table.columns) >= {"part", "offset", "effect", "low", "high", "random_keys", "equal_mass"}
    frame = found.to_dataframe()
    assert len(frame) == 12 * 12
    row = frame.iloc[17]
    cell = (int(row["prompt"]), int(row["layer"]), int(row["part"]), 0)
    assert row["logit_difference"] == pytest.approx(float(found.values[cell]))


def test_normalised_is_a_ratio_of_means(effects):
    from icl_kernel_lens.errors import ResultError

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


def test_saved_and_loaded(effects, tmp_path, mini):
    from icl_kernel_lens import PatchEffects, knock_out, patch_labels
    from icl_kernel_lens.errors import LoadError
    from icl_kernel_lens.results import store

    found, _ = effects
    back = PatchEffects.load(found.save(tmp_path / "effects.safetensors"))
    assert repr(back) == repr(found)
    for name in ("values", "base", "label_scores", "reference", "demo_set"):
        torch.testing.assert_close(getattr(back, name), getattr(found, name), equal_nan=True)
    for name in ("others", "base_others", "controls"):
        assert list(getattr(back, name)) == list(getattr(found, name))
    assert back.run == found.run
    assert back.settings == found.settings
    labels = 1 - effects[1].demo_labels
    turned = replace(
        effects[1],
        demo_labels=labels,
        tokens=effects[1].tokens.scatter(1, effects[1].label_pos, effects[1].label_tokens.gather(1, labels)),
    )
    estimated = patch_labels(
        mini, clean=effects[1], corrupted=turned, method="attribution", offsets=(0,), progress=False
    )
    back = PatchEffects.load(estimated.save(tmp_path / "estimates.safetensors"))
    assert back.label_scores is None
    assert back.sample.cells == estimated.sample.cells
    assert back.sample.correlation == pytest.approx(estimated.sample.correlation)
    assert torch.equal(back.source, estimated.source)
    tensors, meta = store.read(tmp_path / "effects.safetensors", "PatchEffects")
    damages = [{"parts": "foo"}, {"offsets": ["0", "1"]}, {"offsets": [0]}]
    broken = [({**tensors}, meta | damage) for damage in damages]
    broken += [({k: v for k, v in tensors.items() if k != "base"}, meta)]
    broken += [
        (tensors | {name: tensors[name][:-1]}, meta)
        for name in ("label_scores", "others.kl", "controls.random_keys", "demo_set", "base")
    ]
    for parts, words in broken:
        store.write(tmp_path / "broken.safetensors", "PatchEffects", parts, words)
        with pytest.raises(LoadError, match="does not hold a whole PatchEffects"):
            PatchEffects.load(tmp_path / "broken.safetensors")
    sets = knock_out(mini, effects[1], heads=[[(2, 1), (2, 3)]], progress=False)
    tensors, meta = store.read(sets.save(tmp_path / "sets.safetensors"), "PatchEffects")
    assert PatchEffects.load(tmp_path / "sets.safetensors").names == ("L2H1 L2H3",)
    store.write(tmp_path / "broken.safetensors", "PatchEffects", tensors, meta | {"names": []})
    with pytest.raises(LoadError, match="0 sets have names, and there are 1"):
        PatchEffects.load(tmp_path / "broken.safetensors")


def test_figures_of_heads_layers_and_sets(effects, mini, tmp_path):
    """Every kind is drawn, with its control; a head that could not be run keeps its place."""
    from icl_kernel_lens import knock_out, patch_labels

    found, prompts = effects
    labels = 1 - prompts.demo_labels
    turned = replace(
        prompts,
        demo_labels=labels,
        tokens=prompts.tokens.scatter(1, prompts.label_pos, prompts.label_tokens.gather(1, labels)),
    )
    options = {"clean": prompts, "corrupted": turned, "progress": False}
    drawn = {
        "heads": found,
        "layers": patch_labels(mini, what="residual", offsets=(-1, 0), **options),
        "offsets": patch_labels(mini, offsets=(-1, 0), heads=[(2, 1)], **options),
        "demonstrations": patch_labels(mini, offsets=(-2, -1, 0, 1, 2, 3, 4), **options),
        "sets": knock_out(mini, prompts, heads=[[(2, 1), (2, 3)]], progress=False),
    }
    for name, effect in drawn.items():
        figure = effect.figure()
        assert figure.save(tmp_path / f"{name}.png").stat().st_size > 5000
        assert effect.what in figure.title
        assert "<img" in effect._repr_html_()
    spec = drawn["offsets"].figure().spec()
    cells = [d for row in spec["vconcat"] for chart in row["concat"] for d in chart["data"]["values"]]
    assert sum(cell["effect"] is None for cell in cells) == 2 * 11
