"""Which heads are changed together, and where their effects stand in the result."""

from __future__ import annotations

import pytest
import torch
from support import uneven_prompts

from icl_kernel_lens import HeadRef, knock_out, patch_labels, swap_values
from icl_kernel_lens.errors import ResultError


def test_heads_by_name_by_pair_and_in_sets_are_the_same_heads(tiny):
    model, _ = tiny("llama", "bridge")
    prompts = uneven_prompts(count=2)
    options = {"controls": False, "progress": False}
    named = knock_out(model, prompts, heads=["L2H1", (0, 3)], **options)
    assert named.places == {"layer": (0, 1, 2), "head": (0, 1, 2, 3)}
    assert named.values[0].isfinite().nonzero().tolist() == [[0, 3], [2, 1]]
    sets = knock_out(
        model, prompts, heads=["L2H1", ("L2H1", (0, 3)), [HeadRef(0, 3)]], demo="each", **options
    )
    assert sets.places == {"set": ("L2H1", "L2H1 L0H3", "L0H3"), "demo": (0, 1, 2)}
    each = knock_out(model, prompts, heads=[(2, 1), (0, 3)], demo="each", **options)
    torch.testing.assert_close(sets.values[:, 0], each.values[:, 2, 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sets.values[:, 2], each.values[:, 0, 3], atol=1e-5, rtol=1e-5)
    whole = knock_out(model, prompts, heads=[("L2H1", "L0H3")], **options)
    assert whole.values.shape == (2, 1)
    layers = knock_out(model, prompts, layers=[1, 2], **options)
    assert layers.places == {"set": ("all heads of layers 1, 2",)}
    many = [HeadRef(layer, head) for layer in (1, 2) for head in range(4)]
    same = knock_out(model, prompts, heads=[many], **options)
    assert same.places["set"][0].endswith("and 2 more")
    torch.testing.assert_close(same.values, layers.values)
    patched = patch_labels(
        model,
        clean=prompts,
        corrupted=prompts,
        activation="value",
        offsets=(0,),
        heads=["L2H3"],
        progress=False,
    )
    assert patched.places == {"layer": (0, 1, 2), "kv_head": (0, 1), "offset": (0,)}
    assert patched.values[0].isfinite().nonzero().tolist() == [[2, 1, 0]], "its key-value head"


def test_what_is_no_head_is_refused(tiny):
    model, _ = tiny("llama", "bridge")
    prompts = uneven_prompts(count=2)
    for heads, reason in (
        (["L9H0"], "L9H0 is not"),
        (["head 3"], 'a name such as "L3H7"'),
        ("L2H1", "a sequence of heads, by name"),
        (["L2H1", (2, 1)], "named once"),
        ([[], "L2H1"], "each by name or as"),
    ):
        with pytest.raises(ResultError, match=reason):
            knock_out(model, prompts, heads=heads, progress=False)
    with pytest.raises(ResultError, match="L9H0 is not"):
        swap_values(model, prompts, heads=["L9H0"], progress=False)
