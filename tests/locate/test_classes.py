"""Classes from numbers made by hand: each condition alone decides, and what was not measured is not passed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from locate.half import KERNEL_HEAD, WIDTH, classed, identified, named, numbers

from icl_kernel_lens import Criteria
from icl_kernel_lens.locate.classes import MEASURED, answered
from icl_kernel_lens.results.criteria import HEAD_CLASSES, KERNEL_CLASSES
from icl_kernel_lens.results.head_ranking import CONDITIONS, SELECTED

CUTS = ("zeroed", "renormalised", "mean_replaced")
NOTHING = dict.fromkeys(("transport", *CUTS), 0.0)
"""Of a head that carries no labels."""
NO_FIT = {"fit": 0.0, "fit_p": 0.6, "ranking_fit": 0.0, "fit_cut_below": 0.0, "beyond_half_fit": 0.0}
OF_EACH_CLASS = {
    "kernel head": {},
    "pair kernel": {"swap_slope": 0.2},
    "cancelling": {"cancelling": True},
    "shadow": {**NOTHING, "lead_zeroed": 0.0, "lead_renormalised": 0.0},
    "echo": {"fit_cut_below": 0.05, "beyond_half_fit": -0.25},
    "salience": {**NO_FIT, "input_shift": 0.0},
    "addressing": {**NO_FIT, "swap_slope": 0.9},
    "misbound": {**NO_FIT, "swap_slope": 0.0, "behind_slope": -0.9},
    "recency": {**NO_FIT, "input_shift": 0.0, "place_shift": 0.0, "swap_slope": 0.9},
    "label-blind": {**NO_FIT, **NOTHING},
    "sink": {**NO_FIT, **NOTHING, "lead_zeroed": 0.0},
    "word preference": {**NO_FIT, "shift": 0.4, "words": 0.3},
    "driver": NO_FIT,
    "reads labels": {"kernel_part": False},
    "neither": {**NO_FIT, **NOTHING, "lead_zeroed": 0.0, "lead_renormalised": 0.0},
    "undetermined": {"widths": {"fit": 0.6}},
}


@pytest.mark.parametrize("name", HEAD_CLASSES)
def test_a_head_of_each_class(name):
    assert named(**OF_EACH_CLASS[name]) == name


def test_every_condition_holds_of_a_kernel_head():
    _, columns = classed(*numbers(0.9, 0.02, 0.3))
    assert [columns[name] for name in CONDITIONS] == [1.0] * len(CONDITIONS)
    assert columns["invariant"] == columns["votes"] == columns["matters"] == 1


@pytest.mark.parametrize(
    ("condition", "change", "instead"),
    [
        ("fits", {"fit": 0.05}, "driver"),
        ("with_input", {"swap_slope": -0.6}, "pair kernel"),
        ("looks", {"input_shift": 0.0}, "salience"),
        ("ranks", {"ranking_fit": 0.0}, "salience"),  # a test input only sharpens one ranking
        ("transports", {"transport": 0.0}, "label-blind"),  # its edges are needed, and it carries no labels
        ("transports", {"transport": -0.3}, "driver"),
        (
            "carries_kernel",
            {"kernel_share": 0.0},
            "driver",
        ),  # it carries labels, but not by the kernel it follows
        ("carries_kernel", {"kernel_share": -0.3}, "driver"),
        ("own", {"others": 0.5}, "driver"),  # what it brings of a label stands at other demonstrations
        ("gives", {"gained": 1.0}, "driver"),  # the own label brings nothing
        ("gives", {"gained": 0.0}, "driver"),  # other labels silence it, and teach it nothing
        ("alone", {"company": 0.8}, "driver"),  # what it brings of a demonstration hangs on the others
        ("needed", dict.fromkeys(CUTS, 0.0), "undetermined"),
        ("needed", dict.fromkeys(CUTS, -0.3), "undetermined"),
        ("no_echo", {"beyond_half_fit": -0.1}, "echo"),
    ],
)
def test_each_condition_alone_decides(condition, change, instead):
    """All others hold."""
    name, columns = classed(*numbers(0.9, 0.02, 0.3), own=identified(**change))
    assert name == instead
    assert columns[condition] in (0, -1)
    assert {columns[other] for other in CONDITIONS if other != condition} == {1.0}


@pytest.mark.parametrize("number", MEASURED)
def test_what_was_not_measured_is_not_passed(number):
    """A NaN condition never gives a kernel head, nor does an interval that its bound lies in."""
    own = identified(unmeasured=(number,))
    name, columns = classed(*numbers(0.9, 0.02, 0.3), own=own)
    assert name not in (*KERNEL_CLASSES, "shadow", "cancelling")
    assert sum(columns[condition] != columns[condition] for condition in CONDITIONS) == 1
    assert classed(*numbers(0.9, 0.02, 0.3), own=identified(widths={number: 1.5}))[0] not in KERNEL_CLASSES


def test_fits_need_their_p_and_labels_their_invariance():
    assert named(fit_p=0.06) not in KERNEL_CLASSES
    assert named(unmeasured=("fit_p",)) not in KERNEL_CLASSES
    assert named(shift=0.2) == "pair kernel", (
        "labels surely move its weights, by about half of what words carry"
    )
    assert named(shift=0.4) == "pair kernel", "its weights go with the label, too"


def test_weights_that_stay_where_inputs_are_swapped_are_no_pair_kernels():
    """They go by the test input and a place, or by a label that stands there."""
    moved = {"shift": 0.4, "swap_slope": 0.45, "widths": {"swap_slope": 0.1}}
    assert named(**moved) == "pair kernel", "the bound lies within"
    assert named(**moved | {"swap_slope": 0.65}) == "undetermined"
    assert named(swap_slope=0.65) == "addressing", "labels do not move it"


def test_a_fit_that_is_one_of_labels_alone_is_an_echo():
    """Of weights that labels move and that swapped inputs do not; what was not measured says neither."""
    moved = {"shift": 0.4, "swap_slope": 0.2}
    assert named(**moved) == "pair kernel"
    assert named(**moved, within_labels=0.1) == "echo"
    assert named(**moved, within_labels=0.5) == "undetermined", "the bound lies within"
    assert named(**moved, unmeasured=("within_labels",)) == "undetermined"
    assert named(swap_slope=0.2, within_labels=0.1) == "pair kernel", "labels do not move it"


def test_nothing_measured_is_nothing_known():
    assert named(unmeasured=tuple(KERNEL_HEAD)) == "undetermined"
    assert named(unmeasured=tuple(KERNEL_HEAD), kernel_part=False) == "undetermined"


def test_the_ends_of_the_intervals_are_held_against_the_criteria():
    """Each answer just inside and just outside of its bound; the slope's is that of the model and a quarter."""
    criteria, narrow = Criteria(), 0.001

    def asked(condition, **values):
        return float(identified(width=narrow, **values)[condition])

    for condition, number, bound, above in (
        ("fits", "fit", criteria.fit, 1),
        ("with_input", "swap_slope", -0.9 + criteria.slope, 0),
        ("looks", "input_shift", criteria.shift, 1),
        ("transports", "transport", criteria.effect, 1),
        ("carries_kernel", "kernel_share", criteria.effect, 1),
        ("own", "others", 0.25, 0),
        ("gives", "gained", 0.25, 1),
        ("gives", "gained", 0.75, 0),
        ("alone", "company", 0.5, 0),
        ("no_echo", "beyond_half_fit", 0.0, 1),
    ):
        assert asked(condition, **{number: bound + 2 * narrow}) == above
        assert asked(condition, **{number: bound - 2 * narrow}) == 1 - above
        at = asked(condition, **{number: bound})
        assert at != at, "the bound lies within"
    assert asked("transports", transport=-criteria.effect - 2 * narrow) == -1
    at = asked("transports", transport=-criteria.effect)
    assert at != at
    for way in CUTS:
        at = asked("needed", **{way: 0.0})
        assert at != at, "the cuts disagree"
    assert asked("ranks", ranking_fit=2 * narrow) == 1
    assert asked("ranks", ranking_fit=0.0) == 0, "surely below the least fit of interest"
    unsure = identified(width=2 * criteria.fit, ranking_fit=criteria.fit)["ranks"]
    assert unsure.isnan().all()
    unknown = identified(slope_of_model=float("nan"))["with_input"]
    assert unknown.isnan().all(), "nothing to hold the slope against"


def test_answers_are_given_head_by_head():
    """Two layers of three heads at once: each as it is alone."""
    values = {"fit": [0.6, 0.0, 0.1, 0.6, 0.0, 0.6], "transport": [0.3, 0.3, -0.3, 0.0, 0.05, 0.2]}
    one = identified()
    columns = {name: column.expand(2, 3).clone() for name, column in one.items()}
    for name, each in values.items():
        for end, by in (("", 0.0), ("_low", -WIDTH), ("_high", WIDTH)):
            columns[name + end] = torch.tensor(each, dtype=torch.float64).reshape(2, 3) + by
    found = answered(columns, -0.9, Criteria())
    for at in range(6):
        alone = identified(**{name: each[at] for name, each in values.items()})
        for condition in CONDITIONS:
            torch.testing.assert_close(
                found[condition].flatten()[at],
                alone[condition][0, 0],
                equal_nan=True,
                check_dtype=False,
            )


def test_an_echo_is_told_before_a_pair_kernel_and_a_kernel_forms_the_answer():
    assert named(swap_slope=0.2, beyond_half_fit=-0.1) == "echo"
    assert named(echo=0.3) == "kernel head", "what it follows, it has formed"
    assert named(**NO_FIT, shift=0.4, echo=0.3) == "echo", (
        "its weights moved with the answer, and with nothing else"
    )


def test_a_head_against_the_label_part_is_a_driver_and_needs_no_fit():
    for change in ({}, NO_FIT, {"swap_slope": 0.2}):
        assert named(**change, transport=-0.3, zeroed=-0.3, renormalised=-0.3, mean_replaced=-0.3) == "driver"


def test_cancelling_heads_follow_the_kernel():
    """What undoes another and follows no kernel is a driver."""
    assert named(cancelling=True, swap_slope=0.2) == "cancelling"
    assert named(cancelling=True, transport=-0.3) == "cancelling"
    assert named(cancelling=True, **NO_FIT) == "driver"


def test_without_a_kernel_part_heads_read_labels_or_are_neither():
    for change in OF_EACH_CLASS.values():
        kept = {name: value for name, value in change.items() if name != "kernel_part"}
        carries = kept.get("transport", KERNEL_HEAD["transport"]) != 0
        assert named(**kept, kernel_part=False) == ("reads labels" if carries else "neither")
    assert named(kernel_part=False, transport=-0.3) == "reads labels"
    assert named(kernel_part=False, transport=0.06) == "undetermined", (
        "its interval reaches below what is of interest"
    )


@pytest.mark.parametrize("kernel_part", [True, False])
def test_what_nothing_singled_out_is_neither(kernel_part):
    none = dict.fromkeys(SELECTED, False)
    assert named(chosen=none, kernel_part=kernel_part) == "neither"
    shifted = {**none, "label_shift": True}
    unmeasured = tuple(KERNEL_HEAD)
    assert named(chosen=shifted, unmeasured=unmeasured, kernel_part=kernel_part) == "neither"
    for reason in ("votes", "matters", "fit"):
        wanted = {**none, reason: True}
        found = named(chosen=wanted, kernel_part=kernel_part)
        assert found == ("kernel head" if kernel_part else "reads labels")


def test_a_word_preference_needs_no_cut():
    fidelity, drop, base = numbers(0.5, 0.4, 0.4, words=0.3)
    unmeasured = torch.full_like(drop, torch.nan)
    own = identified(unmeasured=tuple(KERNEL_HEAD))
    chosen = {"votes": False, "label_shift": True}
    assert classed(fidelity, unmeasured, base, unmeasured, own=own, **chosen)[0] == "word preference"


def test_votes_and_drops_are_said_and_decide_no_class():
    """Agreement within its control, an agreement by chance, and no drop: still a kernel head by its conditions."""
    name, columns = classed(*numbers(0.3, 0.02, 0.0, p=0.3))
    assert name == "kernel head"
    assert columns["votes"] == columns["matters"] == 0
    assert columns["agreement"] == pytest.approx(0.3)
    assert columns["logit_diff_drop"] == pytest.approx(0, abs=0.03)
    assert columns["logit_diff_drop_low"] < columns["logit_diff_drop"] < columns["logit_diff_drop_high"]
    assert classed(*numbers(0.9, 0.02, 0.3, p=0.3))[1]["votes"] != 1, "its agreement may be chance"


def test_agreeing_as_often_as_the_control_in_few_sets_is_not_a_vote_denied():
    """32 prompts in which a head and its control always agree do not say that it does not vote; 200 do."""
    for prompts, votes in ((8, None), (32, None), (200, 0.0)):
        fidelity, drop, base = numbers(1.0, 0.02, 0.4, p=1.0)
        cut = {
            name: value[:prompts] for name, value in vars(fidelity).items() if isinstance(value, torch.Tensor)
        }
        ones = torch.ones(prompts, 1, 1)
        fidelity = replace(fidelity, **cut | {"agreement": ones, "controls": {"label_prior": ones}})
        _, columns = classed(fidelity, drop[:prompts], base[:prompts])
        assert columns["margin_low"] < 0 < columns["margin_high"]
        assert columns["agreement_low"] < 1
        assert columns["votes"] == votes if votes is not None else columns["votes"] != columns["votes"]
