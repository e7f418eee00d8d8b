"""What is run once: a plan must cover every prompt with its own tokens, and be worth it."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch

from icl_kernel_lens.run.prefixes import ENOUGH, Branch, bundles, find_branches, pass_cost, passes_of, split


def made(rows):
    """Token ids from lists of different lengths."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    return tokens, lengths, lengths - 1


def plan(rows, most_tokens=10**6, each_pass=0):
    tokens, lengths, answer_pos = made(rows)
    return find_branches(tokens, lengths, answer_pos, most_tokens=most_tokens, each_pass=each_pass)


def covered(whole, rows):
    """Every prompt, put together from the branches above it and its own tokens; the tokens run."""
    prompts, ran = {}, 0
    for above, branch in whole.walk():
        start = above[-1].end if above else 0
        assert branch.start == start
        members = branch.every_number()
        if branch.end > start:
            ran += branch.end - start
            shared = {tuple(rows[n][: branch.end]) for n in members}
            assert len(shared) == 1, "members of a branch share its tokens"
        for n in branch.numbers:
            assert n not in prompts
            own = rows[n][branch.end :]
            assert len(own) >= 2
            prompts[n] = rows[n][: branch.end] + own
            ran += len(own)
    assert prompts == dict(enumerate(rows))
    return ran


def random_rows(seed):
    """Prompts from a random tree: demonstrations shared by some, instructions shared by all, at random lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        return torch.randint(0, 50, (n,), generator=generator).tolist()

    def size(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    rows, instruction = [], draw(size(0, 40))
    for _ in range(size(1, 4)):
        demos = instruction + draw(size(0, 60))
        for _ in range(size(1, 3)):
            more = demos + draw(size(0, 50))
            rows += [more + draw(size(2, 20)) for _ in range(size(1, 6))]
    return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]


@pytest.mark.parametrize("seed", range(30))
def test_a_plan_covers_every_prompt_and_never_runs_more(seed):
    rows = random_rows(seed)
    whole = plan(rows)
    lengths = [len(row) for row in rows]
    ran = covered(whole, rows)
    assert ran == whole.cost(lengths) <= sum(lengths)
    for parts in (1, 2, 3):
        if parts > len(rows):
            continue
        work = split(whole, lengths, parts)
        numbers = sorted(n for mine in work for n in mine.every_number())
        assert numbers == list(range(len(rows)))
        for mine in work:
            covered_numbers = mine.every_number()
            for _, branch in mine.walk():
                assert (
                    len({tuple(rows[n][: branch.end]) for n in branch.every_number()}) <= 1 or branch.end == 0
                )
            assert len(set(covered_numbers)) == len(covered_numbers)


def test_shared_demonstrations_are_run_once():
    rows = [[1] * 640 + [2, i, *range(22)] for i in range(32)]
    whole = plan(rows)
    assert covered(whole, rows) == 641 + 32 * 23
    assert len(whole.branches) == 1


def test_prefixes_within_prefixes():
    """Four, eight and sixteen of the same demonstrations: each is run behind the one before."""
    demos = [7 * i % 50 for i in range(400)]
    rows = [[*demos[:n], 40 + i, i] for n in (100, 200, 400) for i in range(8)]
    whole = plan(rows)
    ran = covered(whole, rows)
    assert ran == 400 + 24 * 2
    (first,) = whole.branches
    assert (first.end, first.branches[0].end, first.branches[0].branches[0].end) == (100, 200, 400)


def test_what_is_not_worth_it_is_left():
    few = [[1] * 10 + [i] * 20 for i in range(5)]  # ten tokens
    small = [[1] * 20 + [i] * 400 for i in range(5)]  # a twentieth of the work
    for rows in (few, small):
        whole = plan(rows)
        assert whole.branches == ()
        assert covered(whole, rows) == sum(map(len, rows))


def test_memory_bounds_what_is_kept():
    rows = [[1] * 100 + [i, 3, 4] for i in range(6)] + [[2] * 30 + [i, 3, 4] for i in range(6)]
    assert {branch.end for branch in plan(rows).branches} == {100, 30}
    assert {branch.end for branch in plan(rows, most_tokens=50).branches} == {30}
    assert plan(rows, most_tokens=0).branches == ()


def test_equal_prompts_keep_two_tokens_of_their_own():
    rows = [[5] * 50 for _ in range(4)]
    whole = plan(rows)
    assert covered(whole, rows) == 48 + 4 * 2


def test_work_is_split_by_whole_branches_where_there_are_enough():
    rows = [[s] * 100 + [i, 3, 4] for s in range(4) for i in range(5)]
    whole = plan(rows)
    lengths = [len(row) for row in rows]
    for mine in split(whole, lengths, 2):
        assert len(mine.branches) == 2
        assert mine.numbers == ()
    alone = plan(rows[:5])
    parts = split(alone, lengths[:5], 2)
    assert sorted(len(mine.every_number()) for mine in parts) == [2, 3]
    assert all(mine.branches[0].end == 100 for mine in parts), "the branch is run in both"


def relabelled(demos=8, each=3, words=2):
    """Prompts of one set with every single label replaced, as a label's influence is measured."""
    rows = []
    for at in range(-1, demos):
        for label in range(1, words) if at >= 0 else (0,):
            for test in range(each):
                row = []
                for n in range(demos):
                    row += [*(5 + (3 * n + i) % 20 for i in range(12)), 100 + (label if n == at else 0)]
                rows.append([*row, 50 + test, 51, 52])
    return rows


def passes(whole, each_pass):
    """Of a plan: one for every bundle of branches, and one for the prompts right behind each."""
    found = 0
    for _, branch in whole.walk():
        found += bool(branch.numbers and branch.branches)
        for bundle in bundles(branch.branches, ENOUGH * each_pass):
            found += 1 + len({one.end for one in bundle if one.numbers and not one.branches})
    return found


@pytest.mark.parametrize("each_pass", [10, 60, 500, 10**5])
def test_a_branch_is_worth_its_passes(each_pass):
    """Every prompt is still covered; tokens and passes together cost no more than with every branch apart."""
    for seed in range(30):
        rows = random_rows(seed)
        assert covered(plan(rows, each_pass=each_pass), rows) <= sum(map(len, rows))
    for rows in (relabelled(), relabelled(demos=16, words=4), relabelled(each=1)):
        apart, whole = plan(rows), plan(rows, each_pass=each_pass)
        assert covered(whole, rows) >= covered(apart, rows)
        cost = {
            name: covered(one, rows) + each_pass * passes(one, bundled)
            for name, one, bundled in (("apart", apart, 0), ("whole", whole, each_pass))
        }
        assert cost["whole"] <= cost["apart"]
        if each_pass == 500:
            assert passes(whole, each_pass) <= passes(apart, 0) / 3


def test_a_bundle_is_of_like_length_and_not_larger_than_it_must_be():
    ends = [100, 100, 90, 80, 40, 39, 38]
    branches = [Branch(10, end, (n,)) for n, end in enumerate(ends)] + [
        Branch(10, 100, (), (Branch(100, 120, (9, 10)),))
    ]
    apart = list(bundles(branches, 0))
    assert [len(bundle) for bundle in apart] == [1] * 8, "a pass that costs nothing is not shared"
    together = [[one.end for one in bundle] for bundle in bundles(branches, 200)]
    assert together == [[100, 100, 90], [80], [40, 39, 38], [100]], (
        "200 tokens are enough; 80 ends in time, 30 does not"
    )
    assert sorted(n for bundle in bundles(branches, 200) for one in bundle for n in one.every_number()) == [
        *range(7),
        9,
        10,
    ]
    assert pass_cost(64, "cpu") > pass_cost(576, "cpu") > pass_cost(4096, "cpu") > 0
    assert pass_cost(64, "cuda") > pass_cost(64, "cpu")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("each_pass", [0, 5, 40, 10**9])
def test_passes_pad_and_cost_the_least_of_all_ways_to_cut(seed, each_pass):
    lengths = torch.randint(1, 60, (9,), generator=torch.Generator().manual_seed(seed)).sort(descending=True)[
        0
    ]

    def most(longest):
        return max(1, 150 // longest)

    def cost(sizes):
        parts = lengths.split(sizes)
        if any(len(part) > most(int(part[0])) for part in parts):
            return float("inf")
        return sum(int(part[0]) * len(part) + each_pass for part in parts)

    ways = []
    for ends in product([False, True], repeat=len(lengths) - 1):  # after which prompts a pass ends
        cuts = [0, *(n + 1 for n, end in enumerate(ends) if end), len(lengths)]
        ways.append([b - a for a, b in pairwise(cuts)])
    sizes = passes_of(lengths.tolist(), most, each_pass)
    assert sum(sizes) == len(lengths)
    assert cost(sizes) == min(map(cost, ways))


def test_prompts_of_like_length_share_a_pass_and_others_do_not():
    assert passes_of([], lambda _: 4, 10) == []
    assert passes_of([50] * 6, lambda _: 4, 10) == [4, 2], (
        "of equally good ways the first pass is the largest"
    )
    assert passes_of([400, 300, 299], lambda _: 8, 56) == [1, 2], (
        "101 tokens of padding cost more than a pass"
    )
    assert passes_of([340, 300, 299], lambda _: 8, 90) == [3], "81 do not"
