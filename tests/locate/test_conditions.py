"""The six conditions, measured on a planted model of kernel heads and impostors: every number is what the closed form says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import needs_hooked, shared_prompts
from worlds.planted.plans import best_kind, one

from benchmarks.planted import impostor_plan
from benchmarks.strangers_fourth import only_after_a_hit, silenced_by_another_input, with_the_majority
from benchmarks.strangers_more import only_if_right
from benchmarks.strangers_third import label_changes, only_if_wrong
from icl_kernel_lens import Criteria, HeadRef, PromptSet, label_influence, read
from icl_kernel_lens.interventions import cut_below, label_routes
from icl_kernel_lens.locate import conditions
from icl_kernel_lens.locate.classes import answered
from icl_kernel_lens.locate.conditions import EACH, ENDS, SETS, Measurement, Sample, read_edges
from icl_kernel_lens.models.planted_build import build
from icl_kernel_lens.numbers.identification import drop_share, swap_slope
from icl_kernel_lens.numbers.influence import fit, pair_part
from icl_kernel_lens.numbers.votes import normalised
from icl_kernel_lens.prompts.swapped import swap_inputs
from icl_kernel_lens.results.head_ranking import CONDITIONS, IDENTIFYING
from icl_kernel_lens.worlds.planted.layers import Change, forward
from icl_kernel_lens.worlds.planted.model import PlantedModel
from icl_kernel_lens.worlds.planted.roles import FIRST_LABEL, PlantedHead

HEADS = {
    "kernel": PlantedHead(1, 0, "kernel", gain=2.0, bandwidth=0.5),
    "salience": PlantedHead(1, 1, "salience", gain=1.0),
    "addressing": PlantedHead(1, 2, "addressing", gain=1.0),
    "misbound": PlantedHead(1, 3, "misbound", gain=1.0),
    "label_blind": PlantedHead(2, 0, "label_blind", gain=1.0),
    "harmful_key": PlantedHead(2, 1, "harmful_key", gain=1.5),
    "pair_kernel": PlantedHead(2, 2, "pair_kernel", gain=1.0),
    "recency": PlantedHead(2, 3, "recency", gain=0.5),
    "echo": PlantedHead(3, 0, "echo", gain=1.0, share=0.9),
    "unread_kernel": PlantedHead(3, 1, "unread_kernel"),
    "late_kernel": PlantedHead(3, 2, "kernel", gain=1.0, bandwidth=0.5, share=0.5),
}
REFS = {name: head.ref for name, head in HEADS.items()}
LEVEL, SEED = 0.95, 3
EFFECT = Criteria().effect
SHARES = ("kernel_share", "direct_share", "others", "gained", "company")
CLOSE = {"atol": 2e-3, "rtol": 0, "equal_nan": True}


class Planted:
    """The model, its closed form, and what is measured of it."""

    def __init__(self):
        self.plan = one(
            *HEADS.values(), layers=4, heads_per_layer=4, labels=2, demos=10, separator=True, direct=0.0
        )
        self.model = PlantedModel.of(self.plan, best_kind()).model
        self.prompts = self.plan.prompts(count=16, tests_per_set=2)
        influence = label_influence(self.model, self.prompts, orders=2, seed=SEED, progress=False)
        weights = read(self.model, self.prompts, keep=("label",), progress=False).pooled("label")
        self.measurement = Measurement(self.model, influence, weights, (0,), SEED, LEVEL, None, False)
        self.numbers = torch.arange(len(self.prompts))
        self.found = self.measurement.of(list(REFS.values()), self.numbers)

    def column(self, name):
        """One number of every planted head, in the order of `HEADS`."""
        return torch.stack([self.found.columns[name][tuple(ref)] for ref in REFS.values()])

    def of(self, name, role):
        return float(self.found.columns[name][tuple(REFS[role])])

    def shifted(self, by):
        labels = (self.prompts.demo_labels + by) % self.plan.labels
        tokens = self.prompts.tokens.scatter(1, self.prompts.label_pos, FIRST_LABEL + labels)
        return replace(self.prompts, tokens=tokens, demo_labels=labels)

    def weights(self, prompts):
        whole = self.plan.weights(prompts)
        return torch.stack([whole[:, ref.layer, ref.head] for ref in REFS.values()], 1)


@pytest.fixture(scope="module")
def planted():
    return Planted()


def test_there_is_a_column_for_every_number_and_head(planted):
    shares = {f"{name}{end}" for name in SHARES for end in ENDS}
    assert set(planted.found.columns) | shares | set(CONDITIONS) == set(IDENTIFYING)
    asked = torch.zeros(4, 4, dtype=torch.bool)
    for ref in REFS.values():
        asked[tuple(ref)] = True
    for name, values in planted.found.columns.items():
        assert values.shape == (4, 4)
        assert values[~asked].isnan().all(), name
        if f"{name}_low" in planted.found.columns:
            low, high = (planted.found.columns[f"{name}_{end}"] for end in ("low", "high"))
            there = ~(low.isnan() | values.isnan())
            assert bool((low[there] <= values[there] + 1e-9).all()), name
            assert bool((values[there] <= high[there] + 1e-9).all()), name


def test_fits_are_those_of_the_closed_forms_weights_to_its_influence(planted):
    sets = planted.prompts.demo_set
    mine = pair_part(normalised(planted.weights(planted.prompts)), sets)
    target = pair_part(planted.plan.influence(planted.prompts), sets)
    torch.testing.assert_close(planted.column("fit"), fit(mine, target).correlation.nan_to_num(0.0), **CLOSE)
    assert planted.of("fit", "kernel") > 0.5
    assert planted.of("fit_p", "kernel") < 0.01
    for role in ("salience", "recency"):
        assert planted.of("fit", role) == 0, "what is left is rounding, and follows nothing"
    every, p = planted.measurement.fits_of_all(planted.numbers)
    torch.testing.assert_close(every[1, 0], planted.found.columns["fit"][1, 0])
    assert float(p[1, 0]) < 0.01
    half = planted.numbers[:8]
    fewer, _ = planted.measurement.fits_of_all(half)
    expected = fit(pair_part(normalised(planted.weights(planted.prompts))[:8], sets[:8]), target[:8])
    torch.testing.assert_close(fewer[1, 0], expected.correlation[0], **CLOSE)


def test_the_fit_to_another_order_is_to_its_influence(planted):
    """Demonstrations stand elsewhere there, numbered as before."""
    sets = planted.prompts.demo_set
    mine = pair_part(normalised(planted.weights(planted.prompts)), sets)
    other = planted.measurement.influence.pair(order=1)
    torch.testing.assert_close(planted.column("other_order"), fit(mine, other).correlation, **CLOSE)
    assert planted.of("other_order", "kernel") > 0.4
    once = label_influence(planted.model, planted.prompts.select(range(6)), orders=1, progress=False)
    few = replace(planted.measurement, influence=once, weights=planted.measurement.weights[:6])
    found = few._fits(
        normalised(few.weights.double())[:, [1], [0]], torch.arange(6), planted.prompts.select(range(6))
    )
    assert found["other_order"][0].isnan().all()


def test_shares_of_the_kernel_are_those_of_the_closed_form(planted):
    """Of what values carry; some prompts, some heads."""
    numbers = planted.numbers[4:]
    prompts = planted.prompts.select(numbers.tolist())
    refs = [REFS[name] for name in ("kernel", "late_kernel", "misbound", "unread_kernel", "recency")]
    found = planted.measurement.kernel_shares(refs, numbers, EFFECT)
    own = pair_part(planted.plan.influence(prompts), prompts.demo_set)
    carried = pair_part(planted.plan.carried(prompts, "values"), prompts.demo_set)
    closed = (carried * own[:, None, None]).sum((0, 3)) / own.square().sum()
    assert [str(HeadRef(*at)) for at in found["kernel_share"].isfinite().nonzero().tolist()] == sorted(
        map(str, refs)
    )
    for ref in refs:
        assert float(found["kernel_share"][ref]) == pytest.approx(float(closed[ref]), abs=1e-4), ref
        assert found["kernel_share_low"][ref] <= found["kernel_share"][ref] <= found["kernel_share_high"][ref]
        if float(closed[ref]) > 0.01:
            assert float(found["others"][ref]) < 1e-6, "each edge brings its own label"
            assert float(found["gained"][ref]) == pytest.approx(0.5, abs=1e-3), "values carry any label"
    for name in ("kernel", "late_kernel"):
        assert float(found["company"][REFS[name]]) < 1e-3, "whatever stands beside a demonstration"
    assert float(found["company"][REFS["misbound"]]) > 0.2, "it goes with another's input"
    assert float(closed[REFS["kernel"]]) > 0.2
    assert float(closed[REFS["unread_kernel"]]) == 0
    narrow = replace(planted.measurement, level=0.5).kernel_shares(refs[:1], numbers, EFFECT)
    assert narrow["kernel_share_low"][refs[0]] > found["kernel_share_low"][refs[0]]
    assert planted.measurement.kernel_shares([], numbers, EFFECT) == {}


def test_swapped_inputs_say_what_weights_go_with(planted):
    swapped, pairs = swap_inputs(planted.prompts, SEED)
    before, after = (planted.weights(p).clamp(min=1e-12).log() for p in (planted.prompts, swapped))
    sets = planted.prompts.demo_set
    for name, behind in (("swap_slope", 0), ("behind_slope", 1)):
        ends = swap_slope(before, after, pairs, sets, behind=behind)
        torch.testing.assert_close(planted.column(name), ends[0], **CLOSE)
        for end, expected in zip(("_low", "_high"), ends[1:], strict=True):
            there = ~expected.isnan()  # what agrees exactly in few sets has no interval
            torch.testing.assert_close(planted.column(name + end)[there], expected[there], **CLOSE)
    for role in ("kernel", "salience", "unread_kernel", "late_kernel", "label_blind"):
        assert planted.of("swap_slope", role) < -0.9
    assert planted.of("swap_slope", "addressing") > 0.9
    assert planted.of("behind_slope", "misbound") < -0.9
    assert planted.of("swap_slope", "misbound") > -0.2
    assert -0.8 < planted.of("swap_slope", "pair_kernel") < 0.5
    assert planted.found.columns["swap_slope"][2, 3].isnan(), "recency's weights do not differ"
    pulled = planted.plan.influence(swapped)
    chosen = torch.zeros_like(pulled, dtype=torch.bool).scatter(1, pairs.clamp(min=0).flatten(1), True)
    pulled = pulled.masked_fill(~chosen, torch.nan)
    model, _, _ = swap_slope(planted.plan.influence(planted.prompts), pulled, pairs, sets)
    assert planted.found.slope_of_model == pytest.approx(float(model), abs=2e-3)
    assert planted.found.notes == ()


def test_shifts_are_those_of_the_closed_forms_weights(planted):
    w = normalised(planted.weights(planted.prompts))
    groups = planted.prompts.demo_set.tolist()
    moved, by_place = torch.zeros_like(w[..., 0]), torch.zeros_like(w[..., 0])
    for number, group in enumerate(groups):
        mine = [n for n, other in enumerate(groups) if other == group]
        others = [n for n, other in enumerate(groups) if other != group]
        following = mine[(mine.index(number) + 1) % len(mine)]
        moved[number] = (w[number] - w[following]).abs().sum(-1) / 2
        by_place[number] = (w[number] - w[others].mean(0)).abs().sum(-1) / 2
    torch.testing.assert_close(planted.column("input_shift"), moved.mean(0), **CLOSE)
    torch.testing.assert_close(planted.column("place_shift"), by_place.mean(0), **CLOSE)
    uneven = (w - 0.1).abs().sum(-1).mean(0) / 2
    torch.testing.assert_close(planted.column("uneven"), uneven, **CLOSE)
    assert planted.of("input_shift", "salience") < 1e-4
    assert planted.of("input_shift", "addressing") > 0.2
    assert planted.of("place_shift", "recency") < 1e-4
    assert planted.of("uneven", "recency") > 0.1


def left_in_closed_form(planted, ref, way):
    """Label scores in every relabelled run, own labels first.

    The mean over relabellings of what an edge shows is the same of every class: what a head brings instead is its mass on
    labels, shared out evenly. A label-blind head's values are of inputs, which no relabelling changes; what their mean does to
    an echo has no closed form here.
    """
    head, plan = planted.plan.all_heads[ref], planted.plan
    runs = [planted.shifted(by) for by in range(plan.labels)]
    if head.role == "label_blind" and way == "transport":
        return torch.stack([plan.logits(p) for p in runs])
    scores = torch.stack([plan.logits(p, [ref], renormalised=way == "renormalised") for p in runs])
    mass = torch.stack([plan.weights(p)[:, ref.layer, ref.head].sum(-1) for p in runs])
    if way in ("transport", "mean_replaced") and head.role != "harmful_key":
        scores = scores + head.strength * mass[..., None] / plan.labels
    return scores


def test_what_each_way_removes_is_the_closed_forms_share(planted):
    part, sets = planted.plan.label_part(planted.prompts), planted.prompts.demo_set
    for role, ref in REFS.items():
        for way in label_routes.WAYS:
            if (role, way) == ("label_blind", "mean_replaced"):
                continue
            scores = left_in_closed_form(planted, ref, way)
            left = scores[0] - scores.mean(0)
            share = 1 - float((left * part).sum() / part.square().sum())
            assert planted.of(way, role) == pytest.approx(share, abs=2e-3), (role, way)
            if way in ("zeroed", "renormalised"):
                lead = drop_share(scores[0], planted.plan.logits(planted.prompts), sets)
                assert planted.of(f"lead_{way}", role) == pytest.approx(float(lead[0]), abs=2e-3)
    for role in ("kernel", "late_kernel", "pair_kernel", "echo"):
        assert planted.of("transport", role) > 0.05
    for role in ("label_blind", "harmful_key", "unread_kernel"):
        assert abs(planted.of("transport", role)) < 1e-3
    assert planted.of("lead_zeroed", "label_blind") > 0.05
    assert abs(planted.of("lead_zeroed", "harmful_key")) < 1e-3
    assert abs(planted.of("lead_renormalised", "harmful_key")) > 0.05
    runs = [planted.shifted(by) for by in range(2)]
    cut = torch.stack([planted.plan.logits(p, [*planted.plan.all_heads], renormalised=False) for p in runs])
    share = 1 - float(((cut[0] - cut.mean(0)) * part).sum() / part.square().sum())
    assert planted.found.labels_read.value == pytest.approx(share, abs=2e-3)


def test_the_fit_with_labels_cut_below_is_the_closed_forms(planted):
    plan, sets = planted.plan, planted.prompts.demo_set
    target = pair_part(plan.influence(planted.prompts), sets)
    for role, ref in REFS.items():
        below = [other for other in plan.all_heads if other.layer < ref.layer]
        run = forward(plan, plan._view(planted.prompts), plan.sinks, Change(below, "zeroed"))
        weights = normalised(run.weights[ref][:, None])
        found = float(fit(pair_part(weights, sets), target).correlation[0])
        whole = planted.of("fit", role)
        found = 0.0 if found != found else found  # weights that do not vary follow nothing
        assert planted.of("fit_cut_below", role) == pytest.approx(found, abs=2e-3)
        assert planted.of("beyond_half_fit", role) == pytest.approx(found - whole / 2, abs=2e-3)
    for role in ("kernel", "late_kernel", "unread_kernel"):
        assert planted.of("fit_cut_below", role) == pytest.approx(planted.of("fit", role), abs=2e-3)
    assert planted.of("fit_cut_below", "echo") < planted.of("fit", "echo") - 0.1


def test_what_is_held_of_them(planted):
    """A kernel head passes; each impostor fails by the condition that is about it."""
    shares = planted.measurement.kernel_shares(list(REFS.values()), planted.numbers, EFFECT)
    said = answered(planted.found.columns | shares, planted.found.slope_of_model, Criteria())

    def told(role):
        return {name: float(values[tuple(REFS[role])]) for name, values in said.items()}

    assert all(value == 1 for value in told("kernel").values()), told("kernel")
    assert told("salience")["looks"] == 0
    assert told("salience")["ranks"] == 0
    assert told("addressing")["with_input"] == 0
    assert told("misbound")["with_input"] != 1
    assert told("label_blind")["transports"] == 0
    assert told("harmful_key")["transports"] != 1
    assert told("unread_kernel")["transports"] != 1
    assert told("recency")["looks"] == 0
    assert told("echo")["no_echo"] != 1


def sets_of(prompts, numbers):
    return prompts.demo_set[numbers].tolist()


def test_a_sample_of_shared_sets():
    """Up to four test inputs of each set, in their own order; sets of one are left out."""
    plan = one(PlantedHead(1, 0, "kernel"), demos=4)
    prompts = plan.prompts(count=85, tests_per_set=5)
    assert EACH == 4
    halves = []
    for turn in (0, 1):  # sets of 5, 3, 2 and 1 of the test inputs
        members = [prompts.demo_set.eq(of).nonzero()[:, 0] for of in range(turn, 17, 2)]
        halves.append(torch.cat([m[: (5, 3, 2, 5)[at % 4]] for at, m in enumerate(members)]))
    lonely = torch.tensor([84])
    choosing, reporting = halves[0].flip(0), torch.cat([halves[1], lonely])
    choosing = choosing[choosing != 84]
    sample = Sample.of(None, prompts, choosing, reporting)
    assert sample.rows is not None
    expected = []
    for half in (choosing, reporting):
        kept = []
        for of in prompts.demo_set[half].unique().tolist():
            members = [n for n in half.tolist() if int(prompts.demo_set[n]) == of]
            kept += members[:4] if len(members) > 1 else []
        expected.append(sorted(kept))
    assert sample.rows.tolist() == [*expected[0], *expected[1]]
    assert 84 not in sample.rows.tolist(), "alone in its set there"
    assert sample.choosing.tolist() == list(range(len(expected[0])))
    assert sample.reporting.tolist() == list(range(len(expected[0]), len(sample.rows)))
    assert sample.prompts.same_as(prompts.select(sample.rows.tolist()))


@pytest.mark.parametrize(("count", "each"), [(41, 2), (16 * 4 + 3, 4)])
def test_a_sample_of_independent_prompts_is_crossed_within_each_half(count, each):
    plan = one(PlantedHead(1, 0, "kernel"), demos=4, inputs=12)
    prompts = plan.prompts(count=2 * count + 5)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))
    choosing, reporting = order[:count].sort().values, order[count:].sort().values
    sample = Sample.of(None, prompts, choosing, reporting)
    assert SETS == 16
    assert sample.rows is None
    numbers = [*sample.choosing.tolist(), *sample.reporting.tolist()]
    assert numbers == list(range(len(sample.prompts)))
    end, at = int(prompts.demo_spans[0, -1, 1]), 0
    for half, mine in ((choosing, sample.choosing), (reporting, sample.reporting)):
        for first in range(0, len(half) - each + 1, each):
            members = half[first : first + each]
            shown = prompts.tokens[members[0], :end]
            for member in members:
                if prompts.tokens[member, end] in shown:
                    continue
                expected = torch.cat([shown, prompts.tokens[member, end:]])
                assert torch.equal(sample.prompts.tokens[mine[at]], expected)
                at += 1
        assert at == len(mine)
        at = 0
    assert len(sample.choosing) < count // each * each, "some test inputs are shown already"
    groups = [set(sets_of(sample.prompts, half)) for half in (sample.choosing, sample.reporting)]
    assert not groups[0] & groups[1]


@needs_hooked
@pytest.mark.parametrize(
    ("make", "others", "gained"),
    [(label_changes, 0.5, 0.5), (only_if_wrong, 0.0, 1.0), (only_if_right, 0.0, 0.0)],
)
def test_what_stands_at_another_label_or_only_beside_what_is_known_is_not_its_own(make, others, gained):
    """Heads that follow the kernel in all else; what they bring hangs on another label, or on what the model knows."""
    made = make()
    model = build(made.weights, "HookedTransformer", make.__name__)
    prompts = made.plan.prompts(count=24, tests_per_set=4, seed=0)
    head = HeadRef(1, 1) if make is label_changes else HeadRef(2, 1)
    found = measured(model, prompts).kernel_shares([head], torch.arange(24), EFFECT)
    assert float(found["kernel_share_low"][head]) > 0.2
    assert float(found["others"][head]) == pytest.approx(others, abs=0.15)
    assert float(found["gained"][head]) == pytest.approx(gained, abs=0.01)


@needs_hooked
@pytest.mark.parametrize(
    ("make", "least"), [(only_after_a_hit, 0.5), (with_the_majority, 0.1), (silenced_by_another_input, 0.1)]
)
def test_what_hangs_on_the_other_demonstrations_is_seen(make, least):
    """By labels or inputs of others; the kernel head beside it is the same in any company."""
    made = make()
    model = build(made.weights, "HookedTransformer", make.__name__)
    prompts = made.plan.prompts(count=48, tests_per_set=4, seed=0)
    heads = [HeadRef(1, 0), HeadRef(2, 1)]
    found = measured(model, prompts).kernel_shares(heads, torch.arange(48), EFFECT)
    assert float(found["company"][heads[0]]) < 1e-3
    assert float(found["company"][heads[1]]) > least


@pytest.mark.parametrize("none_stays", [False, True])
def test_where_one_or_no_demonstration_stays_nothing_is_known_of_company(none_stays, monkeypatch):
    """Shares of one demonstration cannot shift; and it may be that nothing can be changed."""
    plan = one(PlantedHead(1, 0, "kernel"), demos=4 if none_stays else 2)
    prompts = plan.prompts(count=8, tests_per_set=2)
    if none_stays:
        monkeypatch.setattr(
            conditions, "change_company", lambda some, _: (some, torch.zeros_like(some.demo_labels).bool())
        )
    known = measured(PlantedModel.of(plan, best_kind()).model, prompts)
    found = known.kernel_shares([HeadRef(1, 0)], torch.arange(8), EFFECT)
    assert all(found[f"company{end}"].isnan().all() for end in ENDS)
    assert float(found["kernel_share"][1, 0]) == pytest.approx(1, abs=1e-3)


def test_what_echoes_above_make_of_a_label_is_not_the_kernels():
    """Two echoes in series amplify the label that leads: a label put in gains less than half of what comes through them."""
    plan = impostor_plan("echo_in_series", 1)
    head = next(at for at, planted in plan.all_heads.items() if planted.role == "kernel")
    prompts = plan.prompts(count=24, tests_per_set=4, seed=2)
    known = measured(PlantedModel.of(plan, best_kind()).model, prompts)
    found = known.kernel_shares([head], torch.arange(24), EFFECT)
    assert float(found["kernel_share"][head]) > float(found["direct_share"][head]) + 0.2
    assert float(found["direct_share_low"][head]) > EFFECT
    assert float(found["gained"][head]) == pytest.approx(0.5, abs=0.01)
    # Where nothing to speak of is written to the logits themselves, it is told of what comes out above.
    in_all = known.kernel_shares([head], torch.arange(24), effect=0.9)
    assert float(in_all["gained_high"][head]) < 0.35


def measured(model, prompts, checkpoint=None, offsets=(0,)):
    influence = label_influence(model, prompts, orders=1, progress=False)
    reading = read_edges(model, prompts, offsets, None, False)
    weights = reading.pooled(conditions.pooling_of(offsets))
    return Measurement(model, influence, weights, offsets, 0, LEVEL, checkpoint, False)


def unlike() -> PromptSet:
    """Two sets of two prompts, whose demonstrations all differ in length."""
    g = torch.Generator().manual_seed(0)
    at, labels = torch.tensor([[3, 8, 14, 21]]).expand(4, -1), torch.tensor([[0, 1, 2, 0], [2, 1, 0, 1]])
    tokens = torch.randint(40, 80, (2, 27), generator=g).repeat_interleave(2, 0)
    tokens[:, 22:] = torch.randint(40, 80, (4, 5), generator=g)
    labels, words = labels.repeat_interleave(2, 0), torch.tensor([10, 20, 30])
    return PromptSet.from_tokens(
        tokens.scatter(1, at, words[labels]), at, labels, words, demo_set=torch.tensor([0, 0, 1, 1])
    )


def test_where_no_inputs_can_be_swapped_is_said_and_never_passed(tiny):
    model, _ = tiny("llama", "bridge")
    heads = [HeadRef(0, 1)]
    found = measured(model, unlike()).of(heads, torch.arange(4))
    for name in ("swap_slope", "behind_slope"):
        assert all(found.columns[name + end].isnan().all() for end in ("", "_low", "_high"))
    assert found.slope_of_model != found.slope_of_model
    (note,) = found.notes
    assert "whether weights go with inputs was not measured" in note
    assert "match_lengths=True" in note
    assert found.columns["transport"][0, 1].isfinite()
    nothing = found.columns["transport"] * torch.nan
    unknown = {f"{name}{end}": nothing for name in SHARES for end in ENDS}
    for slope in (found.slope_of_model, -1.0):
        assert answered(found.columns | unknown, slope, Criteria())["with_input"].isnan().all()


def test_inputs_that_can_be_swapped_in_some_prompts(tiny):
    """The two sets with equal lengths among them are measured, as if they were all."""
    from icl_kernel_lens.prompts.relabel import stacked

    model, _ = tiny("llama", "bridge")
    g = torch.Generator().manual_seed(5)
    even = unlike()
    at = torch.tensor([[3, 7, 11, 15]]).expand(4, -1)
    tokens = torch.randint(40, 80, (2, 21), generator=g).repeat_interleave(2, 0)
    tokens[:, 16:] = torch.randint(40, 80, (4, 5), generator=g)
    even = PromptSet.from_tokens(
        tokens.scatter(1, at, torch.tensor([10, 20, 30])[even.demo_labels]),
        at,
        even.demo_labels,
        torch.tensor([10, 20, 30]),
        demo_set=torch.tensor([2, 2, 3, 3]),
    )
    layer, head = torch.tensor([0, 2]), torch.tensor([1, 2])
    (both, slope, notes), (alone, expected, none) = (
        measured(model, prompts)._swapped(torch.arange(len(prompts)), prompts, layer, head)
        for prompts in (stacked([unlike(), even]), even)
    )
    assert notes == ("inputs could be swapped in 4 of 8 prompts",)
    assert none == ()
    assert slope == pytest.approx(expected, abs=1e-4)
    assert set(both) == {"swap_slope", "behind_slope"}
    for name, ends in both.items():
        torch.testing.assert_close(ends, alone[name], atol=1e-4, rtol=1e-4, equal_nan=True)
    assert both["swap_slope"][0].isfinite().all()


@pytest.mark.parametrize("calls", [2, 13])
def test_interrupted_and_gone_on_with_is_as_if_not(tiny, tmp_path, monkeypatch, calls):
    """In the attention with labels cut below, and in the third relabelling of the routes."""
    model, _ = tiny("llama", "bridge")
    prompts, heads = shared_prompts(sets=2, tests=2, demos=3).select(range(4)), [HeadRef(1, 0)]
    plain = measured(model, prompts, offsets=(0, 1))
    whole = plain.of(heads, torch.arange(4))
    kept = replace(plain, checkpoint=tmp_path)
    seen = []

    def failing(original, name):
        def run(*args, **kwargs):
            seen.append(name)
            if len(seen) > calls:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return run

    steps = {cut_below: "run_variants", label_routes.WithoutEdges: "changes"}
    with monkeypatch.context() as patch:
        for owner, name in steps.items():
            patch.setattr(owner, name, failing(getattr(owner, name), name))
        with pytest.raises(KeyboardInterrupt):
            kept.of(heads, torch.arange(4))
        assert seen[-1] == ("run_variants" if calls < 4 else "changes")
        seen.clear()
        calls = 1000
        again = kept.of(heads, torch.arange(4))
    assert len(seen) < 4 + 3 * 4, "what was finished is not run again"
    assert set(again.columns) == set(whole.columns)
    for name, values in whole.columns.items():
        assert torch.equal(again.columns[name].nan_to_num(-9), values.nan_to_num(-9)), name
    assert again.slope_of_model == whole.slope_of_model
    assert again.labels_read == whole.labels_read
