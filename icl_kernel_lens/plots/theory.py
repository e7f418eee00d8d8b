"""Figures of `theory/`: Table 3 beside the paper's, the variants, the posterior's concentration, the experiments."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import altair as alt

from icl_kernel_lens.plots.figure import Figure

if TYPE_CHECKING:
    from icl_kernel_lens.theory.bayes import Concentration
    from icl_kernel_lens.theory.experiment import Experiment
    from icl_kernel_lens.theory.kernel import VariantTable
    from icl_kernel_lens.theory.theorem import TheoremResult, TheoremTerms

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Okabe and Ito's, told apart by the colour-blind; shapes and dashes say the same again."""
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 2], [1, 3], [10, 4])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke")
WIDTH, HEIGHT = 270, 210
WRAP = 150
"""Characters of a subtitle's line."""

OURS, LETTER, PAPER, TERM = "ours", "ours, nothing refused", "the paper's Table 3", "√(ln(4m/δ)/n)"


def _title(text: str, subtitle: list[str], *, wrap: int = WRAP) -> alt.TitleParams:
    lines = [line for part in subtitle for line in textwrap.wrap(part, wrap)]
    return alt.TitleParams(text, subtitle=lines, anchor="start", fontSize=13)


def _finish(chart: Any) -> Any:
    return chart.configure_view(stroke=None).configure_axis(
        labelFontSize=11, titleFontSize=12, gridColor="#eee"
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _lines(
    rows: list[dict[str, Any]],
    names: list[str],
    x: alt.X,
    y: alt.Y,
    *,
    title: str,
    axis: str,
    offset: bool = False,
) -> alt.LayerChart:
    """Lines with points and intervals of `rows` (x, y, low, high, series); `axis` is y's title, for all layers."""
    pick = range(len(names))
    colour = alt.Color(
        "series:N",
        title=None,
        sort=names,
        scale=alt.Scale(domain=names, range=[COLOURS[i % len(COLOURS)] for i in pick]),
        legend=alt.Legend(
            orient="top",
            columns=3,
            labelLimit=420,
            symbolSize=90,
            symbolOpacity=1,
            symbolStrokeWidth=0,
            symbolDash=[1, 0],
        ),
    )
    shape = alt.Shape(
        "series:N",
        title=None,
        sort=names,
        scale=alt.Scale(domain=names, range=[SHAPES[i % len(SHAPES)] for i in pick]),
    )
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, color=colour)
    if offset:
        base = base.encode(xOffset=alt.XOffset("series:N", sort=names))
    tips = [
        alt.Tooltip("series:N"),
        alt.Tooltip("x:N"),
        *(alt.Tooltip(f"{n}:Q", format=".4g") for n in ("y", "low", "high")),
    ]
    span = base.mark_rule(opacity=0.45 if len(rows) < 60 else 0.25, strokeWidth=1.5).encode(
        y=alt.Y("low:Q", title=axis), y2="high:Q"
    )
    points = base.mark_point(filled=True, size=38, opacity=1).encode(y=y, shape=shape, tooltip=tips)
    layers = [span.transform_filter("isValid(datum.low)"), points]
    if not offset:
        dash = alt.StrokeDash(
            "series:N",
            legend=None,
            scale=alt.Scale(domain=names, range=[list(DASHES[i % len(DASHES)]) for i in pick]),
        )
        layers.insert(0, base.mark_line(strokeWidth=1.8).encode(y=y, strokeDash=dash))
    return alt.layer(*layers).properties(
        width=WIDTH,
        height=HEIGHT,
        title=alt.TitleParams(title, fontSize=12, fontWeight="normal", anchor="start"),
    )


def theorem_figure(result: TheoremResult, letter: TheoremResult | None, terms: TheoremTerms | None) -> Figure:
    """Distance and agreement of kernel regression and exact Bayes against n, beside the paper's numbers.

    Bars are 95 % intervals over trials of one world. In the middle, the sampling term of the bound, its constant
    taken as 1; above 1 (the grey area) a bound says nothing, for two predictions are never further apart.
    """
    world = result.settings["world"]
    counts = list(result.counts)
    runs = {OURS: result} | ({LETTER: letter} if letter is not None else {})
    paper = result.beside_paper() if world["name"] == "han2025" else None
    names = [*runs, PAPER] if paper is not None else list(runs)
    x = alt.X(
        "x:Q",
        title="demonstrations n",
        scale=alt.Scale(type="log", base=2, nice=False, padding=10),
        axis=alt.Axis(values=counts, format="d", grid=False),
    )

    def rows(name: str, run: TheoremResult, measure: Any) -> list[dict[str, Any]]:
        mean = run.agreement() if measure == "agree" else run.mean(measure)
        low, high = run.interval(measure)
        return [
            {
                "series": name,
                "x": n,
                "y": _number(float(mean[i])),
                "low": _number(float(low[i])),
                "high": _number(float(high[i])),
            }
            for i, n in enumerate(run.counts)
        ]

    def printed(column: str) -> list[dict[str, Any]]:
        if paper is None:
            return []
        return [
            {"series": PAPER, "x": int(n), "y": float(v)}
            for n, v in zip(paper["n"], paper[column], strict=True)
        ]

    def scale(title: str, drawn: list[dict[str, Any]]) -> alt.Y:
        seen = [v for row in drawn for v in (row["y"], row.get("low"), row.get("high")) if v]
        return alt.Y(
            "y:Q",
            title=title,
            scale=alt.Scale(type="log", domain=[min(seen) / 1.2, max(seen) * 1.2], nice=False),
            axis=alt.Axis(values=[a * 10.0**b for b in range(-4, 2) for a in (1, 2, 5)], format=".2~g"),
        )

    l1 = [row for name, run in runs.items() for row in rows(name, run, "l1")] + printed("paper_distance")
    linf = [row for name, run in runs.items() for row in rows(name, run, "linf")]
    agree = [row for name, run in runs.items() for row in rows(name, run, "agree")] + printed(
        "paper_accuracy"
    )
    middle_names = list(runs)
    said = [
        f"{world['name']}: {world['tasks']} tasks, {world['states']} states, {world['symbols']} symbols, inputs of "
        f"{world['input_length']}; {len(result.l1)} trials; bars: 95 % over trials",
    ]
    rate, rate_inf = result.rate("l1"), result.rate("linf")
    said.append(
        f"slope of log distance on log n: L1 {rate.slope:.2f} [{rate.low:.2f}, {rate.high:.2f}], L∞ {rate_inf.slope:.2f} "
        f"[{rate_inf.low:.2f}, {rate_inf.high:.2f}]; the theorem's is −0.5"
    )
    share = result.scored
    said.append(
        f"share of prompts with a prediction ({OURS}): {float(share.min()):.0%} to {float(share.max()):.0%}; "
        "a refusal counts as a disagreement"
    )
    panels = [
        _lines(
            l1,
            names,
            x,
            scale("L1 distance to exact Bayes", l1),
            title="Distance (the paper's norm is not stated)",
            axis="L1 distance to exact Bayes",
        )
    ]
    distance = "L∞ distance to exact Bayes"
    if terms is not None:
        bound = [{"series": TERM, "x": n, "y": terms.sampling(n)} for n in counts]
        middle_names = [*middle_names, TERM]
        empty = alt.Chart(alt.Data(values=[{"from": 1, "to": max(1.0, terms.sampling(min(counts))) * 1.2}]))
        area = empty.mark_rect(color="#999", opacity=0.18).encode(
            y=alt.Y("from:Q", title=distance), y2="to:Q"
        )
        word = empty.mark_text(text="says nothing here", color="#555", align="right", dx=-6, dy=-8).encode(
            x=alt.value(WIDTH), y=alt.Y("from:Q", title=distance)
        )
        low, high = float(terms.bias.min()), float(terms.bias.max())
        middle = alt.layer(
            area,
            word,
            _lines(linf + bound, middle_names, x, scale(distance, linf + bound), title="", axis=distance),
        ).properties(
            width=WIDTH,
            height=HEIGHT,
            title=alt.TitleParams(
                "Eq. 7's distance, and its term that falls with n",
                fontSize=12,
                fontWeight="normal",
                anchor="start",
            ),
        )
        verdict = (
            "above 1, so that the bound is vacuous for every task and n; off the scale, not drawn"
            if low >= 1
            else "not drawn"
        )
        said.append(f"the bound's other term, η²ε_θ, is {low:.2g} to {high:.2g}: {verdict}")
    else:
        middle = _lines(linf, middle_names, x, scale(distance, linf), title="Eq. 7's distance", axis=distance)
    panels.append(middle)
    y = alt.Y(
        "y:Q",
        title="same first answer",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format="%", tickCount=5),
    )
    panels.append(_lines(agree, names, x, y, title="Agreement with exact Bayes", axis="same first answer"))
    chart = (
        alt.hconcat(*panels, spacing=26)
        .resolve_scale(color="independent", shape="independent", strokeDash="independent")
        .properties(title=_title("Kernel regression and exact Bayesian prediction", said))
    )
    return Figure(_finish(chart), f"Theorem 1 measured on {world['name']}")


def variants_figure(table: VariantTable) -> Figure:
    """L1 distance to P(Y | x, θ) with infinitely many demonstrations, one mark a task; exact variants are at the left."""
    rows, order, missing = [], [], []
    for score in table:
        name = str(score.variant)
        if name not in order:
            order.append(name)
        if math.isnan(score.mean_distance):
            missing.append(name)
            continue
        rows.append(
            {
                "variant": name,
                "task": score.task,
                "y": max(score.mean_distance, 1e-17),
                "readout": {"ratio": "ratio (Eq. 6)", "sum": "(1/n) sum"}[score.variant.readout],
            }
        )
    exact, distance = 1e-9, "L1 distance to P(Y | x, θ) as n → ∞, mean over the task's inputs"
    base = alt.Chart(alt.Data(values=rows))
    names = ["ratio (Eq. 6)", "(1/n) sum"]
    marks = base.mark_point(filled=True, size=70, opacity=0.75).encode(
        x=alt.X(
            "y:Q",
            title=distance,
            scale=alt.Scale(type="log"),
            axis=alt.Axis(format=".0e", tickCount=8),
        ),
        y=alt.Y(
            "variant:N", title=None, sort=order, scale=alt.Scale(domain=order), axis=alt.Axis(labelLimit=380)
        ),
        color=alt.Color(
            "readout:N",
            title=None,
            scale=alt.Scale(domain=names, range=list(COLOURS[:2])),
            legend=alt.Legend(orient="top"),
        ),
        shape=alt.Shape("readout:N", title=None, scale=alt.Scale(domain=names, range=list(SHAPES[:2]))),
        tooltip=["variant:N", "task:O", alt.Tooltip("y:Q", format=".3g")],
    )
    rule = (
        alt.Chart(alt.Data(values=[{"y": exact}]))
        .mark_rule(strokeDash=[4, 4], color="#555")
        .encode(x=alt.X("y:Q", title=distance))
    )
    layers = [rule, marks]
    if gone := [{"variant": name} for name in dict.fromkeys(missing)]:
        layers.append(
            alt.Chart(alt.Data(values=gone))
            .mark_text(text="no number in float64 for some task", color="#777", align="left", dx=6)
            .encode(x=alt.value(0), y=alt.Y("variant:N", sort=order))
        )
    world = table.world
    chart = (
        alt.layer(*layers)
        .resolve_scale(color="shared", shape="shared")
        .properties(
            width=460,
            height=22 * len(order) + 20,
            title=_title(
                "Which operator, moment and readout make the identity exact",
                [
                    f"{world['name']}: {len({s.task for s in table})} of {world['tasks']} tasks, one mark each; left of "
                    f"the dashed line (1e-9) is exact"
                ],
            ),
        )
    )
    return Figure(_finish(chart), f"variants of the kernel on {world['name']}")


def concentration_figure(found: Concentration) -> Figure:
    """log P(θ*) / P(another task) against n beside the proof's bound, and each pair's divergence beside A2's threshold."""
    table = found.table()
    rows = [
        {
            "x": int(row["n"]),
            "series": "median; 10 to 90 % of trials",
            "y": _number(row["log_odds_50"]),
            "low": _number(row["log_odds_10"]),
            "high": _number(row["log_odds_90"]),
        }
        for row in table.to_dict("records")
    ]
    names = ["median; 10 to 90 % of trials"]
    bound = [
        {"x": int(n), "series": "bound: n (ε_KL − threshold)", "y": float(b)}
        for n, b in zip(table["n"], table["bound"], strict=True)
        if math.isfinite(b)
    ]
    divergences = found.divergences
    slope = divergences.eps_kl - divergences.threshold
    if len(bound) > 1:
        names.append("bound: n (ε_KL − threshold)")
        rows += bound
        why = "" if slope > 0 else "; the bound does not rise: it says nothing"
    else:
        why = ", for every task gives examples that the others cannot; the bound, infinite with it, is not drawn"
        if divergences.threshold == math.inf:
            why = "; the threshold is infinite, a task can be lost at a delimiter: no bound"
    x = alt.X(
        "x:Q", title="demonstrations n", axis=alt.Axis(values=list(found.counts), format="d", grid=False)
    )
    y = alt.Y("y:Q", title="log-odds of the true task (nats)")
    left = _lines(
        [r for r in rows if r["y"] is not None],
        names,
        x,
        y,
        title="The posterior",
        axis="log-odds of the true task (nats)",
    )
    values = divergences.values
    pairs = [
        {"pair": f"{i} → {j}", "task": i, "kl": _number(float(values[i, j]))}
        for i in range(len(values))
        for j in range(len(values))
        if i != j
    ]
    finite = [p for p in pairs if p["kl"] is not None]
    largest = max(
        [p["kl"] for p in finite] + [divergences.threshold if divergences.threshold < math.inf else 1.0]
    )
    for pair in pairs:
        pair["y"] = pair["kl"] if pair["kl"] is not None else 1.15 * largest
        pair["kind"] = "finite" if pair["kl"] is not None else "infinite"
    marks = (
        alt.Chart(alt.Data(values=pairs))
        .mark_point(filled=True, size=55, opacity=0.7)
        .encode(
            x=alt.X("task:O", title="task θ (a mark for each other task)", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("y:Q", title="KL divergence (nats)", scale=alt.Scale(domainMin=0)),
            shape=alt.Shape(
                "kind:N",
                title=None,
                scale=alt.Scale(domain=["finite", "infinite"], range=["circle", "triangle-up"]),
            ),
            color=alt.Color(
                "kind:N",
                title=None,
                scale=alt.Scale(domain=["finite", "infinite"], range=[COLOURS[0], COLOURS[1]]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=["pair:N", alt.Tooltip("kl:Q", format=".4g")],
        )
    )
    layers = [marks]
    if math.isfinite(divergences.threshold):
        line = alt.Chart(alt.Data(values=[{"y": divergences.threshold, "text": "threshold ln 1/(ε_r ε_d)"}]))
        kl = alt.Y("y:Q", title="KL divergence (nats)")
        layers += [
            line.mark_rule(strokeDash=[4, 4], color="#333").encode(y=kl),
            line.mark_text(align="left", dx=4, dy=-7, color="#333").encode(
                x=alt.value(0), y=kl, text="text:N"
            ),
        ]
    right = alt.layer(*layers).properties(
        width=WIDTH,
        height=HEIGHT,
        title=alt.TitleParams("A2: are tasks told apart?", fontSize=12, fontWeight="normal", anchor="start"),
    )
    chart = (
        alt.hconcat(left, right, spacing=40)
        .resolve_scale(color="independent", shape="independent")
        .properties(
            title=_title(
                "How demonstrations tell the task",
                [
                    f"{found.world['name']}: {len(found.posterior)} trials; ε_KL = {divergences.eps_kl:.3g}, threshold "
                    f"{divergences.threshold:.3g} nats: A2 {'holds' if divergences.holds else 'does not hold'}{why}"
                ],
                wrap=105,
            )
        )
    )
    return Figure(_finish(chart), f"posterior concentration on {found.world['name']}")


def experiment_figure(found: Experiment) -> Figure:
    """One panel a measure, against the settings; bars are 95 % intervals over trials."""
    names = list(found.series)
    numbers = not any(isinstance(s, str) for s in found.settings)
    if numbers:
        floats = [float(s) for s in found.settings]
        wide = min(floats) > 0 and max(floats) / min(floats) > 10
        whole = all(f == int(f) for f in floats)
        x = alt.X(
            "x:Q",
            title=found.axis,
            scale=alt.Scale(type="log", base=2 if whole else 10, nice=False, padding=10)
            if wide
            else alt.Scale(padding=10),
            axis=alt.Axis(values=floats, format="d", grid=False)
            if whole
            else alt.Axis(format=".2~g", tickCount=6, grid=False),
        )
    else:
        x = alt.X(
            "x:N",
            title=found.axis,
            sort=[str(s) for s in found.settings],
            axis=alt.Axis(labelAngle=-25, labelLimit=160),
        )
    table = found.table()
    panels = []
    for measure, title in found.measures.items():
        rows = [
            {
                "series": row["series"],
                "x": row["setting"],
                "y": row["mean"],
                "low": _number(row["low"]),
                "high": _number(row["high"]),
            }
            for row in table.to_dict("records")
            if row["measure"] == measure and math.isfinite(row["mean"])
        ]
        y = alt.Y(
            "y:Q",
            title=title,
            scale=alt.Scale(zero=not measure.startswith(("l1_", "agree_"))),
            axis=alt.Axis(tickCount=5, format=".2~g"),
        )
        panels.append(_lines(rows, names, x, y, title="", axis=title, offset=not numbers))
    columns = 2 if len(panels) == 4 else 3
    world, unit = found.options["world"], found.options.get("unit", "trials")
    chart = alt.concat(*panels, columns=columns, spacing=22).properties(
        title=_title(
            found.question,
            [
                f"{world['name']}: {found.trials} {unit}; bars: 95 % over {unit}"
                + (
                    f"; predictions for {100 * float(found.scored.min()):.0f} to {100 * float(found.scored.max()):.0f} % of them"
                    if float(found.scored.min()) < 1
                    else ""
                )
            ],
            wrap=110,
        )
    )
    return Figure(_finish(chart), f"{found.name} on {world['name']}")
