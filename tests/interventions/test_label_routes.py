"""Label edges taken out of heads: against hooks on the plain Hugging Face model in every relabelled run, and closed forms."""

from __future__ import annotations

import pytest
import torch
from architectures import hf_model
from interventions.huggingface import HEADS, Plain
from interventions.test_coverage import keys_by_hand, long_labels, two_classes
from models.left_as_found import build, same, state
from support import VOCAB, shared_prompts
from worlds.planted.plans import best_kind, one

from icl_kernel_lens import HeadRef, PromptSet, Task
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.interventions import label_routes as routes
from icl_kernel_lens.interventions.coverage import Relabelled
from icl_kernel_lens.interventions.label_routes import WAYS, take_out
from icl_kernel_lens.models.transformer_lens_adapters import TransformerLensAdapter
from icl_kernel_lens.numbers.identification import share_removed
from icl_kernel_lens.run import memory
from icl_kernel_lens.worlds.planted.model import PlantedModel
from icl_kernel_lens.worlds.planted.roles import PlantedHead

SETS = ([(0, 1)], [(1, 3), (2, 0)], [(0, 0), (1, 2), (2, 2), (2, 3)])


def refs(sets):
    return [[HeadRef(*head) for head in members] for members in sets]


def routed(model, prompts, sets, ways=WAYS, offsets=(0,), **options):
    runs = Relabelled.of(model, prompts, offsets, "model", progress=False)
    return take_out(runs, refs(sets), ways, checkpoint=options.get("checkpoint"))


def relabelled_by_hand(prompts, number):
    """The tokens of one prompt up to its answer, under every shift of its classes."""
    rows = []
    for by in range(prompts.labels):
        tokens = prompts.tokens[number, : int(prompts.answer_pos[number]) + 1].clone()
        for demo in range(prompts.demos):
            start, end = prompts.label_spans[number, demo].tolist()
            label = (int(prompts.demo_labels[number, demo]) + by) % prompts.labels
            tokens[start:end] = prompts.label_sequences[number, label, : end - start]
        rows.append(tokens)
    return rows


def scores_by_hand(plain, prompts, number, members, way, offsets):
    """Label scores in every relabelled run with the edges taken out of these heads, layer after layer; without any: uncut."""
    at, group = int(prompts.answer_pos[number]), HEADS // plain.kv_heads()
    edges = sorted(key for offset in offsets for key in keys_by_hand(prompts, number, offset))
    rows, found = relabelled_by_hand(prompts, number), []
    places = {(layer, head): plain.place("value", layer, head // group) for layer, head in members}
    values = [plain.run(tokens, watch=list(places.items()))[1] for tokens in rows]
    for tokens in rows:
        changes = []
        for layer in sorted({layer for layer, _ in members}):
            # The answer's own value is that of the run in which all below is changed already.
            _, now, attention = plain.run(tokens, changes=changes, watch=list(places.items()))
            for cell in [cell for cell in members if cell[0] == layer]:
                row, v = attention[layer][0, cell[1], at], now[cell][0]
                over = torch.stack([seen[cell][0, edges] for seen in values])
                match way:
                    case "zeroed":
                        moved = -row[edges] @ v[edges]
                    case "renormalised":
                        left = row.clone()
                        left[edges] = 0
                        moved = (left / left.sum() - row) @ v
                    case "mean_replaced":
                        moved = row[edges] @ (over.mean((0, 1)) - v[edges])
                    case _:
                        moved = row[edges] @ (over.mean(0) - v[edges])

                def add(z, moved=moved):
                    z = z.clone()
                    z[:, at] += moved
                    return z

                changes.append((plain.place("head_output", *cell), add))
        found.append(plain.run(tokens, changes=changes)[0][at][prompts.label_tokens[number]])
    return torch.stack(found)


def few() -> PromptSet:
    """Three prompts, of which two share their demonstrations."""
    return shared_prompts(sets=1, tests=2, demos=3)


CASES = [
    ("llama", few, (0,)),
    ("llama", two_classes, (0, 1)),
    ("gpt2", few, (0, 1)),
    ("gemma2", few, (0,)),
    ("gptj", long_labels, (0, 2)),
]


@pytest.mark.parametrize(("name", "make", "offsets"), CASES)
def test_every_way_is_what_hooks_do_in_every_relabelled_run(tiny, name, make, offsets):
    model, _ = tiny(name, "bridge")
    prompts, plain = make(), Plain(name, hf_model(name))
    numbers = [1, 2]
    found = routed(model, prompts, SETS, offsets=offsets)
    assert found.scores.shape == (prompts.labels, len(prompts), len(SETS), len(WAYS), prompts.labels)
    for number in numbers:
        uncut = scores_by_hand(plain, prompts, number, [], "", offsets)
        torch.testing.assert_close(found.uncut[:, number], uncut, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.part[number], uncut[0] - uncut.mean(0), atol=1e-4, rtol=0)
        for at, members in enumerate(SETS):
            for which, way in enumerate(WAYS):
                expected = scores_by_hand(plain, prompts, number, members, way, offsets)
                close = {"atol": 1e-4, "rtol": 0, "msg": lambda m, at=at, way=way: f"{way}, set {at}: {m}"}
                torch.testing.assert_close(found.scores[:, number, at, which], expected, **close)
                left = expected[0] - expected.mean(0)
                torch.testing.assert_close(found.left[number, at, which], left, **close)
                assert (expected - uncut).abs().max() > 1e-3, "this way changes nothing here"


def test_part_and_left_by_hand():
    g = torch.Generator().manual_seed(0)
    uncut, scores = torch.randn(3, 2, 3, generator=g), torch.randn(3, 2, 4, 1, 3, generator=g)
    found = routes.Routes(scores, uncut, None)  # pyright: ignore[reportArgumentType]
    for prompt in range(2):
        mean = (uncut[0, prompt] + uncut[1, prompt] + uncut[2, prompt]) / 3
        torch.testing.assert_close(found.part[prompt], uncut[0, prompt] - mean)
        for at in range(4):
            mine = scores[:, prompt, at, 0]
            torch.testing.assert_close(found.left[prompt, at, 0], mine[0] - (mine[0] + mine[1] + mine[2]) / 3)


def test_sets_ways_and_their_order_change_nothing(tiny):
    model, _ = tiny("llama", "bridge")
    prompts = few()
    whole = routed(model, prompts, SETS)
    some = routed(model, prompts, [SETS[2], SETS[0]], ("transport", "zeroed"))
    expected = whole.scores[:, :, [2, 0]][:, :, :, [3, 0]]
    torch.testing.assert_close(some.scores, expected, atol=1e-5, rtol=0)
    alone = routed(model, prompts.select([1]), SETS)
    torch.testing.assert_close(alone.scores[:, 0], whole.scores[:, 1], atol=1e-5, rtol=0)


def equally_long(count: int = 7, demos: int = 3, length: int = 32) -> PromptSet:
    """Prompts of one length, whose labels stand at different places."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, VOCAB, (count, length), generator=generator)
    labels = torch.randint(0, 3, (count, demos), generator=generator)
    places = torch.randint(2, 9, (count, demos), generator=generator).cumsum(1)
    words = torch.tensor([10, 20, 30])
    last = torch.full((count,), length - 1)
    return PromptSet.from_tokens(
        tokens.scatter(1, places, words[labels]), places, labels, words, answer_pos=last
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_prompts_run_together_are_what_each_is_alone(tiny, monkeypatch, name):
    """Where a pass costs more than a prompt's variants, equally long prompts share one."""
    model, _ = tiny(name, "bridge")
    prompts = equally_long()
    assert len(prompts.label_pos.unique(dim=0)) == len(prompts)
    routed(model, prompts.select([0]), SETS)  # what is verified once is not counted
    passes = []
    forward = TransformerLensAdapter.forward

    def counted(adapter, tokens, *args, **options):
        passes.append(len(tokens))
        return forward(adapter, tokens, *args, **options)

    monkeypatch.setattr(TransformerLensAdapter, "forward", counted)
    monkeypatch.setattr(routes, "cost_of_pass", lambda _: 10**6)
    together, few = routed(model, prompts, SETS, offsets=(0, 1)), len(passes)
    monkeypatch.setattr(routes, "cost_of_pass", lambda _: 0)
    alone = routed(model, prompts, SETS, offsets=(0, 1))
    torch.testing.assert_close(together.scores, alone.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.uncut, alone.uncut, atol=1e-5, rtol=0)
    # What is left are the passes that give the values under every relabelling, one a prompt.
    values = len(prompts) * prompts.labels
    assert few - values <= (len(passes) - few - values) / 3


def planted(*heads, **settings):
    plan = one(*heads, **({"labels": 3, "demos": 6, "layers": 3, "heads_per_layer": 3} | settings))
    prompts = plan.prompts(count=6, tests_per_set=3)
    return plan, PlantedModel.of(plan, best_kind()).model, prompts


def test_relabellings_that_do_not_fit_together_are_run_in_fewer(tiny, monkeypatch):
    """The values at label edges are the same whatever memory there is for how many relabellings at once."""
    model, _ = tiny("gpt2", "bridge")
    runs = Relabelled.of(model, shared_prompts(), (0,), "model", progress=False)
    assert len(runs.prompts) > 2
    found, passes, run_on = [], [], routes.run_on
    for most in (1, 2, 100):
        monkeypatch.setattr(memory, "prompts_at_once", lambda *_, most=most, **__: most)
        monkeypatch.setattr(routes, "run_on", lambda *a: passes.append(len(a[1])) or run_on(*a))
        found.append(routes.Values(runs.adapter, runs.prompts, runs.offsets).of(0))
        assert max(passes) == min(most, len(runs.prompts))
        passes.clear()
    for values in found[1:]:
        torch.testing.assert_close(values, found[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("labels", [2, 3])
def test_kernel_heads_transport_their_closed_form_share_and_together_all(labels):
    heads = ((1, 0, 2.0, 0.35), (1, 2, 1.0, 0.6), (2, 1, 1.5, 0.5))
    plan, model, prompts = planted(
        *(PlantedHead(layer, head, "kernel", gain=g, bandwidth=h) for layer, head, g, h in heads),
        labels=labels,
    )
    cells = [(layer, head) for layer, head, _, _ in heads]
    found = routed(model, prompts, [*([cell] for cell in cells), cells[:2], cells])
    votes = torch.nn.functional.one_hot(prompts.demo_labels, labels).double()
    weights = plan.weights(prompts)
    parts = []
    for layer, head, gain, _ in heads:
        vote = gain * (weights[:, layer, head, :, None] * votes).sum(1)
        parts.append(vote - vote.mean(-1, keepdim=True))
    whole = sum(parts)
    torch.testing.assert_close(found.part.double(), whole, atol=1e-4, rtol=0)
    share, _, _ = share_removed(found.left, found.part, prompts.demo_set)
    expected = torch.stack([(part * whole).sum() / whole.square().sum() for part in parts])
    torch.testing.assert_close(share[:3, 3], expected, atol=1e-4, rtol=0)
    assert expected.min() > 0.05
    assert float(share[:3, 3].sum()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(share[3], expected[:2].sum().expand(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(share[4], torch.ones(4, dtype=torch.float64), atol=1e-4, rtol=0)


def test_a_label_blind_head_transports_nothing_and_is_needed_for_the_lead():
    plan, model, prompts = planted(
        PlantedHead(1, 0, "kernel", gain=2.0), PlantedHead(2, 0, "label_blind", gain=2.0)
    )
    found = routed(model, prompts, [[(2, 0)]])
    torch.testing.assert_close(
        found.left[:, 0], found.part[:, None].expand(-1, len(WAYS), -1), atol=1e-4, rtol=0
    )
    for way, renormalised in (("zeroed", False), ("renormalised", True)):
        expected = plan.logits(prompts, [HeadRef(2, 0)], renormalised=renormalised)
        mine = found.scores[0, :, 0, WAYS.index(way)].double()
        torch.testing.assert_close(mine, expected, atol=2e-4, rtol=0)
        assert (mine - found.uncut[0]).abs().amax(-1).mean() > 0.3
    transported = found.scores[0, :, 0, WAYS.index("transport")]
    torch.testing.assert_close(transported, found.uncut[0], atol=1e-4, rtol=0)


def test_a_harmful_key_does_nothing_zeroed_and_something_renormalised():
    ref = HeadRef(2, 0)
    plan, model, prompts = planted(
        PlantedHead(1, 0, "kernel", gain=2.0), PlantedHead(2, 0, "harmful_key", gain=3.0)
    )
    found = routed(model, prompts, [[ref]])
    for way in ("zeroed", "mean_replaced", "transport"):
        torch.testing.assert_close(found.scores[:, :, 0, WAYS.index(way)], found.uncut, atol=1e-4, rtol=0)
    mine = found.scores[0, :, 0, WAYS.index("renormalised")].double()
    torch.testing.assert_close(mine, plan.logits(prompts, [ref], renormalised=True), atol=2e-4, rtol=0)
    assert (mine - found.uncut[0]).abs().amax(-1).mean() > 0.3


def test_what_was_finished_is_kept(tiny, tmp_path, monkeypatch):
    model, _ = tiny("gpt2", "bridge")
    whole = routed(model, few(), SETS)
    seen, original = [], routes.WithoutEdges.changes

    def failing(self, *given):
        seen.append(self.by)
        if len(seen) > 4:
            raise KeyboardInterrupt
        return original(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(routes.WithoutEdges, "changes", failing)
        with pytest.raises(KeyboardInterrupt):
            routed(model, few(), SETS, checkpoint=tmp_path)
    assert max(seen) == 1, "it was interrupted in the second of three relabellings"
    again = []
    monkeypatch.setattr(
        routes.WithoutEdges, "changes", lambda self, *given: again.append(self.by) or original(self, *given)
    )
    found = routed(model, few(), SETS, checkpoint=tmp_path)
    assert 0 not in again
    assert torch.equal(found.scores, whole.scores)


def test_the_model_is_left_as_it_was():
    model = build("bridge")
    routed(model, few(), SETS[:1])
    before = state(model)
    routed(model, few(), SETS)
    assert same(before, state(model))


def test_labels_of_unequal_token_counts_are_refused(mini):
    """Their edges are not the same in every relabelling, so that values have no mean over them."""
    texts = ("plea lawyer judge later", "comet lunar silver", "chord melody opera again")
    rows = [
        {"text": f"{text} {more}", "label": i} for text in texts for more in ("rose", "pine") for i in (0, 1)
    ]
    task = Task.from_records(rows, name="uneven", label_words=("gray", "silver moss"))
    prompts = task.prompts(mini, demos=3, count=4, sets=2)
    runs = Relabelled.of(mini, prompts, (0,), "model", progress=False)
    with pytest.raises(PromptError, match=r"in every relabelling alike.*'gray' \(1\), 'silver moss' \(2\)"):
        take_out(runs, refs([[(0, 0)]]), checkpoint=None)
