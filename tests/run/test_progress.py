"""One bar for a whole call: its parts, what they turn out to be, what was kept, what is not shown."""

from __future__ import annotations

from functools import partial

import pytest
from support import shared_prompts

from icl_kernel_lens import in_context_accuracy, load_task, locate_heads, read
from icl_kernel_lens.run import progress
from icl_kernel_lens.run.progress import Work, work
from icl_kernel_lens.run.runner import tokens_to_run


@pytest.fixture
def bars(monkeypatch):
    """Every bar that is made, drawn anew at each step: how far it is of what."""
    made: list[list[tuple[float, float]]] = []
    original = progress._Bar.draw

    def draw(self, tokens, words, *, kept):
        original(self, tokens, words, kept=kept)
        if self.shown:
            if not hasattr(self, "seen"):
                self.seen = []
                made.append(self.seen)
            self.seen.append((self.bar.n, self.bar.total))

    monkeypatch.setattr(progress, "tqdm", partial(progress.tqdm, mininterval=0))
    monkeypatch.setattr(progress._Bar, "draw", draw)
    return made


def test_parts_take_the_place_of_what_was_expected(bars):
    with work("whole", [10.0, 20.0, 30.0], True):
        with work("first", (), True, tokens=40.0) as step:
            step.add(40.0, "first")
        with work("second", [5.0, 5.0], True), work("inner", (), True, tokens=5.0) as step:
            step.add(5.0, "inner")
        with work("third", (), True, tokens=30.0) as step:
            step.add(10.0, "third")
        with work("more", (), True, tokens=7.0) as step:
            step.add(7.0, "more")
    (seen,) = bars
    assert seen == [(40, 90), (45, 80), (55, 75), (62, 62)], "ended parts count what was done"


def test_sums_in_another_order_are_no_more_than_all(bars):
    """0.1 + 0.2 + 0.3 is a bit more than 0.1 + (0.2 + 0.3); tqdm warns of a bar beyond its end."""
    with work("whole", [0.1, 0.5], True):
        with work("first", (), True, tokens=0.1) as step:
            step.add(0.1, "first")
        with work("second", (), True, tokens=0.5) as step:
            step.add(0.2, "second")
            step.add(0.3, "second")
    assert all(n <= total for n, total in bars[0])


def test_work_adds_up():
    whole = Work(10.0)
    assert whole.total() == 10
    whole.parts = [Work(4.0), Work(5.0)]
    assert whole.total() == 9
    whole.parts[0].done = 6.0
    assert (whole.total(), whole.so_far()) == (11, 6), "more than expected"
    whole.ended = True
    assert whole.total() == 6


def test_what_is_not_shown_is_not_counted(bars, capsys):
    with work("whole", [10.0], True):
        with work("hidden", (), False, tokens=99.0) as step:
            step.add(99.0, "hidden")
        with work("seen", (), True, tokens=10.0) as step:
            step.add(10.0, "seen")
    assert bars == [[(10, 10)]]
    assert "seen" in capsys.readouterr().err
    with work("whole", [10.0], False), work("inside", (), False, tokens=10.0) as step:
        step.add(10.0, "inside")
    assert capsys.readouterr().err == ""


def test_what_was_kept_of_an_earlier_run_takes_no_time(capsys):
    with work("again", (), True, tokens=100.0) as step:
        step.add(80.0, "kept", kept=True)
        bar = step._bar.bar
        assert (bar.n, bar.initial) == (80, 80), "the rate counts from here"
        step.add(20.0, "run")
    assert "100%" in capsys.readouterr().err


def test_an_exception_closes_the_bar():
    with pytest.raises(ValueError, match="stop"), work("whole", [10.0], True):
        raise ValueError("stop")
    with work("next", (), True, tokens=1.0) as step:
        assert step._bar.title == "next", "nothing is left of the other"


def test_a_resumed_reading_begins_where_it_was(tiny, tmp_path, bars):
    model, prompts = tiny("llama")[0], shared_prompts()
    read(model, prompts, checkpoint=tmp_path, progress=False)
    read(model, prompts, checkpoint=tmp_path)
    ((drawn,),) = bars
    assert drawn[0] == pytest.approx(drawn[1])
    assert drawn[1] == pytest.approx(tokens_to_run(prompts, progress_adapter(model)))


def progress_adapter(model):
    from icl_kernel_lens.models.adapter import as_adapter

    return as_adapter(model)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:.*demonstration sets a half are few")
def test_locating_and_accuracy_draw_one_bar_each(mini, bars, capsys):
    prompts = load_task("topics").prompts(mini, demos=4, count=64, sets=32)
    in_context_accuracy(mini, prompts)
    assert len(bars) == 1
    bars.clear()
    capsys.readouterr()
    locate_heads(mini, prompts)
    (seen,) = bars
    done = [n for n, _ in seen]
    assert done == sorted(done)
    assert seen[-1][0] == pytest.approx(seen[-1][1], rel=1e-6), "at the end all is done"
    least, most = min(total for _, total in seen), max(total for _, total in seen)
    assert most < 3 * least, "what is expected is near what comes"
    shown = capsys.readouterr().err
    for step in ("label coverage", "reading attention", "answering", "knock_out of", "64/64 prompts"):
        assert step in shown, step
