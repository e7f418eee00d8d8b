"""The GPT-J study: what it chooses and reports, what it runs again, its notebook, and what `make gpu` runs without a GPU.

It runs on the bundled model, whose kernel head is known, and on a small random model in GPT-J's own file format.
"""

from __future__ import annotations

import ast
import importlib
import json
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from charts.located import run_info

import icl_kernel_lens as ikl
from benchmarks import gpu_all
from benchmarks.tables import Table
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.results.head_scores import HeadScores
from studies.fetch import cache_folder
from studies.gptj import run as study
from studies.gptj.random_weights import SMALL, Shape, build, write_folder

NOTEBOOK = Path(study.__file__).parent / "gptj.ipynb"
CHOOSE, REPORT = 64, 64
MINI = ["--model", "mini", "--only", "topics", "--prompts", str(CHOOSE), str(REPORT)]

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def on_mini(tmp_path_factory):
    """The folder of a finished run on the bundled model."""
    place = tmp_path_factory.mktemp("gptj")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*demonstration sets a half are few")
            study.main([*MINI, "--out", str(place / "out")])
        assert not list((cache_folder() / "studies").glob("gptj/topics-*")), (
            "a finished task keeps no checkpoint"
        )
    return place / "out"


def as_scores(values, controls):
    """One score a prompt, layer and head, without a model."""
    prompts, layers, heads = values.shape
    return HeadScores(
        name="head_vote",
        title="by hand",
        unit="fraction of prompts",
        values=values,
        controls=controls,
        companions={},
        reasons={},
        demo_set=torch.arange(prompts),
        run=run_info(layers, heads),
    )


def agreeing(prompts, rate):
    """Ones and zeros: so large a share of ones in every hundred prompts."""
    return torch.tensor([float((i * 37) % 100 < 100 * rate) for i in range(prompts)])


def test_the_bundled_models_kernel_head_is_chosen_and_reported_on_other_prompts(on_mini):
    """Read again, the reporting prompts alone: the same agreement."""
    row = json.loads((on_mini / "topics.json").read_text())
    model = ikl.load_model("mini", dtype=study.DTYPE, backend="bridge")
    drawn = ikl.load_task("topics").prompts(model, demos=16, count=CHOOSE + REPORT, seed=0)
    halves = drawn.select(range(CHOOSE)), drawn.select(range(CHOOSE, CHOOSE + REPORT))
    assert len(drawn.demo_set.unique()) == CHOOSE + REPORT, "demonstrations of its own for each test input"
    read = [ikl.read(model, half, progress=False) for half in halves]
    assert [(one["pooling"], one["rule"]) for one in row["chosen"]] == [
        (pooling, rule) for pooling in ("span_max", "label") for rule in ("highest", "surest")
    ]
    for one in row["chosen"]:
        assert one["head"] == "L2H1"
        votes = [ikl.head_vote(evidence, pooling=one["pooling"]).mean()[2, 1] for evidence in read]
        right = ikl.head_vote(read[1], pooling=one["pooling"], against="truth").mean()[2, 1]
        assert [one["agreement_where_chosen"], one["agreement"], one["truth"]] == pytest.approx(
            [float(votes[0]), float(votes[1]), float(right)], abs=1e-6
        )
        assert one["low"] <= one["agreement"] <= one["high"]
        assert one["control"] < one["low"]


def test_both_bands_hold_the_bundled_models_kernel_layer(on_mini):
    bands = {one["band"]: one for one in json.loads((on_mini / "topics.json").read_text())["bands"]}
    assert set(bands) == {"votes, span_max", "votes, label", "causes"}
    for one in bands.values():
        assert (one["first"], one["last"], one["layers"], one["heads"]) == (2, 2, 3, 1)
        assert one["first_interval"] == one["last_interval"] == [2, 2]


def test_tables_and_figures_are_written(on_mini):
    assert len(pd.read_csv(on_mini / "chosen.csv")) == 4
    assert set(pd.read_csv(on_mini / "bands.csv")["task"]) == {"topics"}
    votes = pd.read_csv(on_mini / "topics-votes.csv")
    assert len(votes) == 2 * 12
    assert votes.loc[votes["head"] == "L2H1", "agreement_where_chosen"].min() > 0.9
    assert "pair kernel" in set(pd.read_csv(on_mini / "topics-located.csv")["class"])
    for name in ("topics-label", "topics-span_max", "topics-located"):
        assert (on_mini / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_printed_names_the_papers_numbers_beside(on_mini):
    said = study.says("sst2", json.loads((on_mini / "topics.json").read_text()))
    assert "L2H1" in said
    assert "(paper: 79.7%)" in said
    assert "layer 2 of 3, counted from 0; intervals: first 2–2, last 2–2" in said
    assert "18–21" in said


def test_a_band_is_where_the_chosen_heads_agree_beyond_their_controls():
    values = torch.stack([agreeing(200, 0.5)] * 10, 1).reshape(200, 5, 2)
    values[:, 2, 0], values[:, 3, 1] = 1, agreeing(200, 0.9)
    vote = as_scores(
        values, {"last_label": agreeing(200, 0.5)[:, None, None], "weak": torch.zeros(200, 1, 1)}
    )
    sure = study.surely_votes(vote)
    assert sure.nonzero().tolist() == [[2, 0], [3, 1]]
    band = study.vote_band(vote, sure)
    assert band is not None
    assert (band.first, band.last) == (2, 3)
    assert band.by_layer == pytest.approx((0, 0, 0.5, 0.4, 0))
    assert study.vote_band(vote, torch.zeros(5, 2, dtype=torch.bool)) is None


def test_a_head_within_the_margin_is_not_chosen():
    values = torch.stack([agreeing(2000, 0.5), agreeing(2000, 0.54)], 1)[:, None]
    vote = as_scores(values, {"constant": agreeing(2000, 0.5)[:, None, None].roll(1, 0)})
    assert not study.surely_votes(vote).any()


def test_the_highest_rule_takes_the_highest_agreement_whatever_its_control():
    vote = ikl.head_vote(small_evidence())
    assert study.RULES["highest"](vote) == ikl.HeadRef(0, 0)


def test_evidence_of_some_prompts_is_theirs():
    evidence = small_evidence()
    some = study.part(evidence, range(1, 3))
    assert torch.equal(some.answers, evidence.answers[1:3])
    whole = ikl.head_vote(evidence).values[1:3]
    torch.testing.assert_close(ikl.head_vote(some).values, whole, equal_nan=True)


def test_a_finished_task_is_not_run_again(on_mini, monkeypatch, capsys):
    monkeypatch.setattr(study, "load", lambda name: pytest.fail("loaded a model"))
    study.main([*MINI, "--out", str(on_mini)])
    assert "L2H1" in capsys.readouterr().out
    study.main([*MINI, "--only", "topics", "sst2", "--out", str(on_mini), "--list"])
    assert capsys.readouterr().out.splitlines() == ["topics finished", "sst2"]


def test_a_folder_of_another_setting_is_refused(on_mini):
    with pytest.raises(SystemExit, match="one model and one setting"):
        study.main([*MINI, "--demos", "8", "--out", str(on_mini)])


def test_what_was_read_before_an_interruption_is_not_read_again(tmp_path, monkeypatch):
    out, read, kept = tmp_path / "out", [], ikl.read

    def cut_short(*args, **kwargs):
        raise KeyboardInterrupt

    def reading(*args, checkpoint, **kwargs):
        before = sorted(checkpoint.glob("*.safetensors"))
        found = kept(*args, checkpoint=checkpoint, **kwargs)
        read.append((before, sorted(checkpoint.glob("*.safetensors"))))
        return found

    monkeypatch.setattr(ikl, "read", reading)
    monkeypatch.setattr(ikl, "locate_heads", cut_short)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            study.main([*MINI, "--out", str(out)])
        assert not (out / "topics.json").exists()
    (first, after), (second, last) = read
    assert not first
    assert after == second == last
    assert after, "the first run kept what it read"


@without_gpu
def test_gptj_itself_needs_a_gpu():
    with pytest.raises(SystemExit, match="needs a GPU of 16 GB"):
        study.main([])


def test_a_model_that_is_not_whole_on_the_gpu_is_refused(monkeypatch):
    split = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta")])
    monkeypatch.setattr(ikl, "load_model", lambda *args, **kwargs: split)
    with pytest.raises(SystemExit, match="must fit on the GPU"):
        study.load("somewhere")


def test_a_task_from_files_on_a_random_model_of_gptjs_kind(tmp_path):
    """From end to end as on GPT-J: pytorch_model.bin, float16, a task folder; nothing is found in random weights."""
    task = ikl.load_task("opinions")
    assert isinstance(task, ikl.Task)
    for name, pool in (("train", task.train), ("test", task.test)):
        lines = [json.dumps({"text": e.texts[0], "label": task.classes[e.label]}) for e in pool]
        (tmp_path / f"films.{name}.jsonl").write_text("\n".join(lines) + "\n")
    study.main(["--tiny", "--only", "films", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    row = json.loads((tmp_path / "out" / "films.json").read_text())
    assert row["setting"]["dtype"] == "float16"
    assert row["data"] == "films.train.jsonl, films.test.jsonl"
    assert len(row["chosen"]) == 4
    assert row["longest_prompt"] <= SMALL.context


def test_the_written_folder_is_read_as_gptjs_own(tmp_path):
    """The masks in the file are passed over, and the weights are those that were made."""
    shape = Shape(layers=2, heads=2, width=16, rotary=4, vocab=300, context=64)
    write_folder(tmp_path, shape, torch.device("cpu"), torch.float16)
    stored = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert {"transformer.h.1.attn.bias", "transformer.h.1.attn.masked_bias"} <= set(stored)
    model = study.load(str(tmp_path))
    made = build(shape, torch.device("cpu"), torch.float16)
    assert model.cfg.n_layers == 2
    assert torch.equal(model.original_model.lm_head.weight, made.lm_head.weight)
    assert {p.dtype for p in model.parameters()} == {torch.float16}


def cells(kind):
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_one():
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    for cell in book["cells"]:
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | code
        assert not cell.get("outputs")
    assert "not yet run there" in "".join(cells("markdown"))


def test_names_that_the_notebook_imports_from_here_exist():
    found = [
        (node.module, alias.name)
        for source in cells("code")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("icl_kernel_lens", "studies"))
        for alias in node.names
    ]
    assert found
    assert all(hasattr(importlib.import_module(module), name) for module, name in found)


@without_gpu
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    """Every code cell, one after the other; the package is installed here, and there is no GPU."""
    monkeypatch.chdir(tmp_path)
    shared = {}
    for source in cells("code"):
        exec(compile(source, NOTEBOOK.name, "exec"), shared)
    shown = capsys.readouterr().out
    assert "opinions: " in shown
    assert shown.count("Image object") == 3
    assert (tmp_path / "gptj-results" / "opinions.json").exists()


@without_gpu
def test_without_a_gpu_make_gpu_says_so_first_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        gpu_all, "MODEST", Shape(layers=2, heads=2, width=32, rotary=8, vocab=1024, context=1024)
    )
    gpu_all.main(out=tmp_path / "results", only=("types",))
    said = capsys.readouterr().out
    assert said.startswith("no GPU: a tiny shape on the CPU, nothing is written\n")
    assert "float16" in said
    assert not (tmp_path / "results").exists()


def test_a_type_that_is_too_far_from_float32_stops_make_gpu(monkeypatch):
    monkeypatch.setattr(
        gpu_all, "MODEST", Shape(layers=2, heads=2, width=32, rotary=8, vocab=1024, context=1024)
    )
    monkeypatch.setattr(gpu_all, "TOLERANCES", {torch.bfloat16: (1e-9, 1e-9)})
    with pytest.raises(RuntimeError, match="those of float32 on the CPU"):
        gpu_all.compare_types()


def test_with_one_gpu_two_processes_are_said_not_to_be_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert gpu_all.compare_processes().rows == [["nccl", "not run: there is one GPU"]]


def test_what_a_gpu_gave_is_written_after_each_part(tmp_path):
    gpu_all._write(tmp_path / "results", {"device": "some GPU"}, [Table("Types", ["a"], [["b"]])])
    assert json.loads((tmp_path / "results" / "gptj.json").read_text())["tables"][0]["rows"] == [["b"]]
    assert "some GPU" in (tmp_path / "results" / "gptj.md").read_text()
