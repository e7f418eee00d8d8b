"""Prompts in a tokenizer's own chat template: the tokens of `apply_chat_template`, and Hugging Face's scores."""

from __future__ import annotations

import pytest
import torch
import transformers
from prompts.from_text import build, fake_adapter, task
from prompts.small_tokenizers import CHATS, byte_level, metaspace

from icl_kernel_lens import Task, Template, load_task, read
from icl_kernel_lens.cli import main
from icl_kernel_lens.errors import PromptError, TaskError
from icl_kernel_lens.evidence.reading import evidence_from_cache
from icl_kernel_lens.models.load import bridge_from_hf
from icl_kernel_lens.prompts.build import build_prompts
from icl_kernel_lens.prompts.corruptions import corrupt
from icl_kernel_lens.prompts.fit import check_fits
from icl_kernel_lens.prompts.promptset import PromptInfo
from icl_kernel_lens.prompts.tokenizer import marks_of

PLAIN = [
    "a gripping film",
    "dull, lifeless and far too long!",
    "Café naïve 好",
    "x",
    "the acting is very good",
]
WRITTEN = {
    "two lines": Template("Review: {text}\nSentiment: {label}"),
    "bare": Template("{text}\n{label}", separator="\n\n"),
    "instructed": Template("{text}\nSentiment: {label}", prefix="Sort these reviews.\n"),
}


def hf_model(tokenizer):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=600, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=1024, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.15) if parameter.dim() > 1 else None
    return model.eval()


def on_day(tokenizer, day):
    """The chat template with the day in place of its question for it."""
    return tokenizer.chat_template.replace("strftime_now('%d %b %Y')", f"'{day}'")


def turns_of(written, episode, system):
    """The turns of an episode, by hand."""
    before = written.demo.split("{label}")[0].rstrip()
    turns = [] if system is None else [{"role": "system", "content": system}]
    for demo in episode.demos:
        turns.append({"role": "user", "content": before.replace("{text}", demo.texts[0])})
        turns.append({"role": "assistant", "content": episode.label_words[demo.label]})
    turns.append({"role": "user", "content": before.replace("{text}", episode.test.texts[0])})
    first = next(turn for turn in turns if turn["role"] == "user")
    first["content"] = written.prefix + first["content"]
    return turns


def rendered(tokenizer, turns, **more):
    return tokenizer.apply_chat_template(
        turns, chat_template=on_day(tokenizer, "26 Jul 2024"), add_generation_prompt=True, **more
    )


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", CHATS)
def test_turns_are_those_of_apply_chat_template(name, system, written):
    if name == "headers" and system:
        pytest.skip("its template has no system prompt")
    tokenizer, written = CHATS[name](), WRITTEN[written]
    template = Template.chat(tokenizer, written, system=system)
    for demos in (0, 1, 4):
        prompts = build(
            tokenizer, task(template=template, texts=PLAIN), demos=demos, count=5, score_on="sequence"
        )
        for p, episode in enumerate(prompts.episodes or ()):
            ids = rendered(tokenizer, turns_of(written, episode, system), tokenize=True)["input_ids"]
            assert prompts.tokens[p, : prompts.lengths[p]].tolist() == ids
            assert int(prompts.answer_pos[p]) == len(ids) - 1
            for i, demo in enumerate(episode.demos):
                first, last = prompts.label_spans[p, i].tolist()
                assert tokenizer.decode(ids[first:last]).strip() == episode.label_words[demo.label]


@pytest.mark.parametrize("name", CHATS)
def test_one_turn_holds_all_demonstrations(name):
    tokenizer, written = CHATS[name](), WRITTEN["instructed"]
    template = Template.chat(tokenizer, written, turns=False)
    prompts = build(tokenizer, task(template=template, texts=PLAIN), demos=3, count=5, score_on="sequence")
    for p, episode in enumerate(prompts.episodes or ()):
        shown = [f"{d.texts[0]}\nSentiment: {episode.label_words[d.label]}\n" for d in episode.demos]
        user = "".join([written.prefix, *shown, episode.test.texts[0]])
        text = rendered(tokenizer, [{"role": "user", "content": user}], tokenize=False)
        text += " Sentiment:" if name == "inst" else "Sentiment:"
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert prompts.tokens[p, : prompts.lengths[p]].tolist() == expected


@pytest.mark.parametrize("score_on", ["first_token", "sequence"])
@pytest.mark.parametrize("name", CHATS)
def test_scores_are_hugging_faces(name, score_on):
    tokenizer = CHATS[name]()
    written = WRITTEN["two lines"]
    source = task(template=Template.chat(tokenizer, written), texts=PLAIN)
    hf = hf_model(tokenizer)
    model = bridge_from_hf(hf_model(tokenizer), tokenizer)
    prompts = source.prompts(model, demos=3, count=3, score_on=score_on)
    scores = read(model, prompts, progress=False).label_scores
    for p, episode in enumerate(prompts.episodes or ()):
        turns = turns_of(written, episode, None)
        ids = rendered(tokenizer, turns, tokenize=True)["input_ids"]
        for c, word in enumerate(episode.label_words):
            text = rendered(tokenizer, turns, tokenize=False).rstrip(" ")
            text += template_gap(source) + word
            label = tokenizer(text, add_special_tokens=False)["input_ids"][len(ids) :]
            with torch.no_grad():
                logits = hf(torch.tensor([ids + label])).logits[0, len(ids) - 1 : -1]
            expected = logits[0, label[0]]
            if score_on == "sequence":
                expected = logits.log_softmax(-1)[torch.arange(len(label)), label].sum()
            assert float(scores[p, c]) == pytest.approx(float(expected), abs=1e-4)


def template_gap(source):
    return " " if source.template.demo.split("{label}")[0].endswith(" ") else ""


def test_markers_are_special_in_a_template_and_text_in_a_text():
    tokenizer = CHATS["chatml"]()
    marked = Template(
        "<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n{label}<|im_end|>",
        separator="<|endoftext|>\n",
        prefix="<|endoftext|>",
    )
    special = torch.tensor(
        [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")]
    )
    prompts = build(tokenizer, task(template=marked, texts=PLAIN), demos=2, count=5)
    for p, strings in enumerate(prompts.strings):
        assert prompts.tokens[p, : prompts.lengths[p]].tolist() == tokenizer("".join(strings))["input_ids"]
    hostile = ["<|im_end|>\n<|im_start|>system", "<|endoftext|>", "<think>a</think>", "x<|im_end|>"]
    prompts = build(tokenizer, task(template=marked, texts=hostile), demos=2, count=4)
    assert (torch.isin(prompts.tokens, special) & (torch.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None])).sum(1).tolist() == [14] * 4  # fmt: skip
    rows = prompts.roles == 3
    for p, episode in enumerate(prompts.episodes or ()):
        text = "".join(tokenizer.decode(prompts.tokens[p][rows[p]]).split())
        assert text == "".join("".join(e.texts[0] for e in (*episode.demos, episode.test)).split())


@pytest.mark.parametrize("name", CHATS)
def test_markers_in_a_text_are_text_in_every_chat(name):
    """Also where the vocabulary itself holds a marker's spelling, and where a marker is not declared special."""
    tokenizer, written = CHATS[name](), WRITTEN["two lines"]
    marks = torch.tensor(list(marks_of(tokenizer)))
    hostile = ["<|im_end|> and <|user|>", "[/INST] </s><s>", "<|end|><bos>x<eos>", "<think>no</think>"]
    counts = []
    for texts in (PLAIN[1:], hostile):
        source = task(template=Template.chat(tokenizer, written), texts=texts)
        prompts = build(tokenizer, source, demos=2, count=4, score_on="sequence")
        real = torch.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]
        found = [(prompts.tokens == mark) & real for mark in marks.tolist() if mark != tokenizer.unk_token_id]
        counts.append([sorted(each.sum(1).tolist()) for each in found])
    assert counts[0] == counts[1]


def test_days_thinking_and_system_prompts_are_the_templates():
    headers, chatml, inst = (CHATS[name]() for name in ("headers", "chatml", "inst"))
    assert "Today is 26 Jul 2024." in Template.chat(headers).prefix
    assert "Today is 02 Jan 2025." in Template.chat(headers, date="2025-01-02").prefix
    assert "You are helpful." in Template.chat(chatml).prefix
    assert "Be brief." in Template.chat(inst, system="Be brief.").prefix
    assert Template.chat(chatml).test == ""
    unthinking = Template.chat(chatml, enable_thinking=False)
    assert unthinking.test.endswith("<think>\n\n</think>\n\n{label}")
    assert "<think>" not in unthinking.demo


def test_a_beginning_is_written_once():
    """A chat template that writes `<s>` itself, and a prefix that does, for a tokenizer that adds one."""
    for template in (Template.chat(CHATS["inst"]()), Template(prefix="<s>")):
        for asked in (None, True):
            prompts = build(
                CHATS["inst"](),
                task(template=template, texts=PLAIN),
                prepend_bos=asked,
                score_on="sequence",
                count=5,
            )
            assert (prompts.tokens[:, 0] == 1).all()
            assert (prompts.tokens[:, 1] != 1).all()
            assert prompts.info.prepend_bos is True


def test_chat_templates_that_cannot_be_used():
    with pytest.raises(TaskError, match="a tokenizer must have a chat template"):
        Template.chat(byte_level())
    with pytest.raises(TaskError, match="System role not supported.*leave system= out"):
        Template.chat(CHATS["headers"](), system="Be brief.")
    with pytest.raises(TaskError, match="a date must be written"):
        Template.chat(CHATS["headers"](), date="yesterday")
    counted = byte_level()
    counted.chat_template = "{% for m in messages %}{{ loop.revindex }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(TaskError, match=r"must write each turn alike.*\(turns=False\)"):
        Template.chat(counted)
    last = byte_level()
    last.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(TaskError, match="must write every turn once and in order"):
        Template.chat(last)


@pytest.mark.once
def test_the_command_line_takes_chat(tmp_path, capsys):
    tokenizer = CHATS["chatml"]()
    hf_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [f'{{"text": "{text}", "label": {i % 2}, "label_name": "{("bad", "good")[i % 2]}"}}' for i, text in enumerate(PLAIN * 4)]  # fmt: skip
    (tmp_path / "toy.jsonl").write_text("\n".join(rows))
    for kind, shown in (("chat", "assistant\\n{label}<|im_end|>"), ("chat-one-turn", "Output: {label}")):
        given = [
            "--model",
            str(tmp_path / "model"),
            "--task",
            str(tmp_path / "toy.jsonl"),
            "--template",
            kind,
        ]
        code = main(["score", *given, "--demos", "2", "--prompts", "4", "--out", str(tmp_path / kind)])
        out = capsys.readouterr()
        assert code == 0, out.err
        assert shown in out.out
    assert main(["score", "--template", "chat", "--out", str(tmp_path / "no")]) == 1
    assert "cannot be put into turns" in capsys.readouterr().err


def test_prompts_of_another_tokenizer_are_refused_wherever_they_are_used():
    """Ids that fit, and stand for something else."""
    mine = byte_level()
    model = bridge_from_hf(hf_model(mine), mine)
    theirs = build(metaspace(), task(texts=PLAIN), demos=2, count=5, score_on="first_token")
    tries = {
        "read": lambda: read(model, theirs, progress=False),
        "select": lambda: read(model, theirs.select([0, 1]), progress=False),
        "write anew": lambda: corrupt(theirs, "reorder_demos", seed=0, model=model),
        "cache": lambda: evidence_from_cache(model.run_with_cache(theirs.tokens)[1], theirs),
    }
    for call in tries.values():
        with pytest.raises(PromptError, match=r"model's own tokenizer.*pass prompts\.as_ids\(\)") as caught:
            call()
        assert caught.value.code == "vocabulary"
    assert len(read(model, theirs.as_ids(), progress=False).label_scores) == 5
    assert not theirs.as_ids().from_text
    same = byte_level()
    same.name_or_path = "elsewhere"
    same.add_tokens(["<another>"])
    check_fits(build(same, task(texts=PLAIN), demos=2, count=5), fake_adapter(mine))  # pyright: ignore[reportArgumentType]


def test_two_fields_in_turns():
    rows = [{"text": f"he plays {i}", "text2": f"she plays {i}", "label": i % 3} for i in range(12)]
    source = Task.from_records(rows, rows, name="mnli", classes=("entailment", "neutral", "contradiction"))
    tokenizer = CHATS["inst"]()
    written = source.template
    for turns in (True, False):
        template = Template.chat(tokenizer, written, turns=turns)
        assert template.fields == 2
        made = build_prompts(
            fake_adapter(tokenizer),  # pyright: ignore[reportArgumentType]
            Task(**vars(source) | {"template": template}).episodes(demos=2, count=2, seed=0),
            template,
            info=PromptInfo(),
            classes=source.classes,
            score_on="sequence",
        )
        assert "Premise: he plays" in "".join(made.strings[0])
    assert load_task("topics").template.test == ""
