"""Models that are files through the command line: what is written is what the dequantised, the merged model of Hugging Face gives."""

from __future__ import annotations

import html
import json
import warnings

import pytest
import torch
from models.weights_made import adapter_of, llama, needs_gguf, needs_peft, write_gguf
from prompts.small_tokenizers import byte_level
from support import same_evidence
from transformers import AutoModelForCausalLM, AutoTokenizer

from icl_kernel_lens import Evidence, HeadScores, head_vote, load_model, load_task, read
from icl_kernel_lens.cli import main
from icl_kernel_lens.models.sources import MINI

WORDS, TEMPLATE = ("negative", "positive"), "{text} is {label} ."
NUMBERS = {"demos": 4, "prompts": 12}


@pytest.fixture
def boats(tmp_path):
    """A task of short texts, in a file."""
    rows = [{"text": f"{'good film' if i % 2 else 'dull maybe'} {i}", "label": i % 2} for i in range(60)]
    (tmp_path / "boats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "boats.jsonl"


def score(model, out, *more):
    numbers = [str(part) for key, value in NUMBERS.items() for part in (f"--{key}", value)]
    given = ["score", "--model", str(model), "--out", str(out), "--device", "cpu", "--no-progress", *numbers]
    return main([*given, *map(str, more)])


def told(out, capsys):
    """What is printed, and the report."""
    printed = capsys.readouterr()
    assert not printed.err, "a bar, or a warning"
    return printed.out, html.unescape((out / "report.html").read_text())


def same_results(out, model, task):
    """What a command wrote, and the same prompts read in a model that was loaded in another way."""
    expected = read(
        model, task.prompts(model, demos=NUMBERS["demos"], count=NUMBERS["prompts"]), progress=False
    )
    same_evidence(Evidence.load(out / "evidence.safetensors"), expected, atol=1e-4)
    votes = HeadScores.load(out / "head_vote.safetensors").values
    torch.testing.assert_close(votes, head_vote(expected).values, atol=0, rtol=0, equal_nan=True)


@needs_gguf
def test_a_gguf_file(tmp_path, boats, capsys):
    tokenizer = byte_level()
    hf = llama(vocab=len(tokenizer), context=512)
    expected = write_gguf(tmp_path / "tiny.gguf", hf, "Q4_0", tokenizer=tokenizer)
    out = tmp_path / "out"
    task = ("--task", boats, "--label-words", *WORDS, "--template", TEMPLATE)
    assert score(tmp_path / "tiny.gguf", out, *task) == 0, capsys.readouterr().err
    for text in told(out, capsys):
        assert "Tiny Llama (Q4_0)" in text
        assert "Q4_0 and F32: " in text
        assert " % of weights in Q4_0" in text
    model = load_model(expected, tokenizer=tokenizer)
    same_results(out, model, load_task(boats, label_words=WORDS, template=TEMPLATE))


@needs_peft
def test_a_folder_of_an_adapter(tmp_path, capsys):
    folder, out = tmp_path / "trained" / "mine", tmp_path / "out"
    adapted = adapter_of(AutoModelForCausalLM.from_pretrained(MINI))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the base model's name, which is written next
        adapted.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(MINI)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    capsys.readouterr()  # of the base model, read above
    assert score(folder, out) == 0, capsys.readouterr().err
    for text in told(out, capsys):
        assert "models/mini + trained/mine" in text
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    merged = load_model(adapted.merge_and_unload(), tokenizer=tokenizer)
    same_results(out, merged, load_task("topics"))
    with pytest.raises(AssertionError):
        same_results(out, load_model("mini", device="cpu"), load_task("topics"))
