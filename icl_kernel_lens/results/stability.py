"""Several rankings side by side: does another seed, order, task, template or model tell the same?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product

import pandas as pd

from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.stability import stability_figure
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.results.base import Result, broken
from icl_kernel_lens.results.head_ranking import HeadRanking


@dataclass(frozen=True, eq=False, repr=False)
class Stability(Result):
    """Rankings by name, compared each with each."""

    rankings: Mapping[str, HeadRanking]

    def _problems(self) -> Iterator[str]:
        count, clash = len(self.rankings), {"head", "kernel_head_in"} & set(self.rankings)
        return broken(
            {
                f"at least two rankings can be compared; got {count}": count > 1,
                f"{', '.join(clash)} is a column of the table, and cannot be a ranking's name": not clash,
            }
        )

    def to_dataframe(self) -> pd.DataFrame:
        """The long forms of all rankings, the name of each in the column `ranking`."""
        frames = {name: ranking.to_dataframe() for name, ranking in self.rankings.items()}
        return pd.concat(frames, names=["ranking"]).reset_index(0).reset_index(drop=True)

    def table(self) -> pd.DataFrame:
        """One row a head that is more than neither in some ranking: in how many it is a kernel head, and its class in each.

        Of models of different shape there is no such table.
        """
        if not self._same_shape():
            raise ResultError(
                "these rankings are of models of different shape; use pairs() for their bands.",
                code="not-comparable",
            )
        count = Counter(head for ranking in self.rankings.values() for head in ranking.heads)
        some = {head for r in self.rankings.values() for head, name in r.classes.items() if name != "neither"}
        rows = [
            {"head": str(head), "kernel_head_in": count[head]}
            | {name: ranking.classes[head] for name, ranking in self.rankings.items()}
            for head in sorted(some, key=lambda head: (-count[head], head))
        ]
        return pd.DataFrame(rows, columns=["head", "kernel_head_in", *self.rankings])

    def pairs(self) -> pd.DataFrame:
        """One row a pair of rankings: overlap of the kernel heads, rank correlations, overlap of the bands."""
        rows = []
        for first, second in combinations(self.rankings, 2):
            found = self.rankings[first].compare(self.rankings[second])
            rows.append(
                {
                    "first": first,
                    "second": second,
                    "overlap": found.overlap,
                    **{f"{by}_rank_correlation": value for by, value in found.correlation.items()},
                    "depth_overlap": found.depth_overlap,
                }
            )
        return pd.DataFrame(rows)

    def figure(self) -> Figure:
        """Every pair's rank correlations, as two squares."""
        rows = []
        for first, second in product(self.rankings, repeat=2):
            found = self.rankings[first].compare(self.rankings[second])
            pair = {"first": first, "second": second}
            pair["shared"] = f"{len(found.both)}/{found.either}" if found.same_shape else "–"
            rows += [pair | {"by": by, "correlation": value} for by, value in found.correlation.items()]
        return stability_figure(rows, list(self.rankings))

    def _same_shape(self) -> bool:
        """Whether all rankings are of as many layers and heads."""
        return len({ranking.agreement.shape[1:] for ranking in self.rankings.values()}) == 1

    def __repr__(self) -> str:
        lines = [f"Stability({len(self.rankings)} rankings: {', '.join(self.rankings)})"]
        lines += [f"  {name}: {ranking.accuracy.verdict()}" for name, ranking in self.rankings.items()]
        read_at = {name: ranking.offsets for name, ranking in self.rankings.items()}
        if len(set(read_at.values())) > 1:
            said = ", ".join(f"{name} {tuple(offsets)}" for name, offsets in read_at.items())
            lines.append(
                f"  not on the same edges; offsets from the label are {said}: weights and drops are of different things"
            )
        if self._same_shape():
            table = self.table()
            lines.append(table.to_string(index=False) if len(table) else "  nothing located in any")
        lines.append(self.pairs().to_string(index=False, float_format=lambda x: f"{x:.2f}"))
        return "\n".join(lines)
