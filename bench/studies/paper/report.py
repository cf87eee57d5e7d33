"""The figures of `tables` as Markdown tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pfdiff.quality.pictures.plot import Curve, log_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def markdown(found: dict[str, Any]) -> str:
    """All tables, with counts and what is missing."""
    features = found["features"]
    parts = [
        "# The paper's tables on `fashion`\n",
        f"Features: the shipped classifier's (`{features['extractor']}`, SHA-256 {features['sha256'][:12]}), against "
        f"{features['real']:,} real training pictures. These are no FID and compare with no published figure. Sample s "
        "has seed s; conditional: label s mod 10, unconditional: label 10. FD falls with the count: compare within a "
        "table only. DPM-Solver-2 and PFDiff over it take even NFE only. Written by `bench/studies/paper/tables.py`.\n",
    ]
    real = found["real"]
    parts.append(
        f"{real['samples']:,} real test pictures, measured as samples: FD {real['fd']:.2f}, sFD {real['sfd']:.1f}, "
        f"precision {real['precision']:.2f}, recall {real['recall']:.2f}.\n"
    )
    titles = {
        "conditional": "Conditional",
        "unconditional": "Unconditional",
        "ablation": "Ablation: DDIM, past, future, both",
        "k_l": "(k, l) over DDIM",
        "k_l_over_dpm": "(k, l) over DPM-Solver-2",
    }
    for key, title in titles.items():
        parts.append(f"## {title}\n")
        parts.append(rows_of(found[key]) if found.get(key) else "Not measured.\n")
    parts += [section(key, found) for key in SECTIONS]
    return "\n".join(parts)


def rows_of(one: dict[str, Any]) -> str:
    """FD / sFD / precision / recall, a row a sampler, a column an NFE."""
    nfe = sorted({count for row in one["rows"].values() for count in row}, key=int)
    best = {count: min(row[count]["fd"] for row in one["rows"].values() if count in row) for count in nfe}

    def cell(count: str, figures: dict[str, float] | None) -> str:
        if figures is None:
            return ""
        fd = f"**{figures['fd']:.2f}**" if figures["fd"] == best[count] else f"{figures['fd']:.2f}"
        return f"{fd} / {figures['sfd']:.1f} / {figures['precision']:.2f} / {figures['recall']:.2f}"

    rows = [[f"`{name}`", *(cell(count, row.get(count)) for count in nfe)] for name, row in one["rows"].items()]
    lines = [
        f"{one['samples']:,} samples a cell; FD / sFD / precision / recall.\n",
        *table(["sampler", *(f"NFE {count}" for count in nfe)], rows),
    ]
    return "\n".join(lines) + "\n"


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    head, *body = (f"| {' | '.join(row)} |" for row in (names, *rows))
    return [head, "|---" * len(names) + "|", *body]


def search_lines(found: dict[str, Any]) -> list[str]:
    """The search on a tenth against all."""
    rows = []
    for one in found["search"]:
        chosen = ", ".join(f"`{short(name)}` {times}" for name, times in one["chosen"].items())
        figures = f"{one['agree']:.0%}", f"{one['fd_of_choice_over_best']:.3f}"
        rows.append([str(one["nfe"]), f"`{short(one['best'])}`", chosen, *figures])
    lines = table(["NFE", "best on all", "chosen on a tenth, times", "agree", "FD of the choice / least"], rows)
    if found["search"]:
        lines.append(f"\n{found['search'][0]['draws']} draws of a tenth of the samples, the same for all six.")
    return lines


def correlation_lines(found: dict[str, Any]) -> list[str]:
    """Does the cheap criterion choose what the expensive one would?"""
    one, given = found["correlation"], found["errors"]
    rows = []
    for nfe, row in one["each_nfe"].items():
        least = f"`{row['least_error']}`", f"`{row['least_fd']}`", f"{row['fd_of_least_error_over_least']:.2f}"
        rows.append([nfe, str(row["solvers"]), f"{row['spearman']:.2f}", *least])
    names = ["NFE", "solvers", "Spearman", "least error", "least FD", "FD of the least error / least FD"]
    return [
        f"Spearman's rank correlation over all {one['cells']} cells: {one['spearman']:.2f}. Errors: RMS over "
        f"{given['seeds']} seeds to {given['reference']['solver']} in {given['reference']['nfe']} evaluations.\n",
        *table(names, rows),
    ]


def grid_lines(found: dict[str, Any]) -> list[str]:
    """How the grids of the tables were chosen."""
    given = found["grids"]
    names = list(next(iter(given["error"].values())))
    rows = [
        [f"`{solver}`", *(f"{row[one]:.3f}" for one in names), given["chosen"][solver]]
        for solver, row in given["error"].items()
    ]
    return [
        f"Error to the reference on {given['seeds']} seeds, the mean of the logarithms at {given['nfe'][0]} and "
        f"{given['nfe'][1]} evaluations. Uniform is taken, unless another lowers it by 5 % or more.\n",
        *table(["sampler", *names, "taken"], rows),
    ]


def time_lines(found: dict[str, Any]) -> list[str]:
    """With and without PFDiff at equal NFE."""
    given = found["times"]
    seconds = given["cpu_seconds_for_1000"]
    nfe = list(next(iter(seconds.values())))
    rows = [[f"`{sampler}`", *(f"{min(row[count]):.2f}" for count in nfe)] for sampler, row in seconds.items()]
    return [
        f"One thread of {given['machine']['processor']}, {given['backend']}, batch {given['batch']}; the best of "
        f"{given['rounds']} rounds of {given['timed']} samples in turns. Time of the processor, for the machine was "
        "not idle.\n",
        *table(["sampler", *(f"NFE {count}" for count in nfe)], rows),
    ]


# Section by the part of a study that it shows: its title, and what makes its lines.
SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "search": ("(k, l) chosen on a tenth of the samples", search_lines),
    "correlation": ("Error to the reference against FD", correlation_lines),
    "grids": ("Grids", grid_lines),
    "times": ("CPU seconds for 1,000 samples", time_lines),
}


def section(key: str, found: dict[str, Any]) -> str:
    """One of `SECTIONS`; a part that was not run says so."""
    title, lines = SECTIONS[key]
    return "\n".join([f"## {title}\n", *(lines(found) if key in found else ["Not measured."])]) + "\n"


def plots(found: dict[str, Any]) -> dict[str, Figure]:
    """By file name: FD against NFE, conditional and unconditional; FD against the error to the reference."""
    note = "features of the shipped classifier, not FID"
    drawn = {}
    for kind, name in (("conditional", "fashion_paper"), ("unconditional", "fashion_paper_unconditional")):
        if one := found[kind]:
            drawn[name] = log_plot(
                [
                    Curve(short(sampler), [(int(nfe), cell["fd"]) for nfe, cell in row.items()])
                    for sampler, row in one["rows"].items()
                ],
                title=f"fashion, {kind}: Frechet distance against network evaluations",
                x_label="network evaluations",
                y_label="FD, not FID",
                note=f"{one['samples']:,} samples, {found['features']['real']:,} real pictures, {note}",
            )
    rms = found.get("errors", {}).get("rms", {})
    rows = (found["conditional"] or {"rows": {}})["rows"]
    curves = [
        Curve(short(sampler), [(rms[sampler][nfe], cell["fd"]) for nfe, cell in row.items() if nfe in rms[sampler]])
        for sampler, row in rows.items()
        if sampler in rms
    ]
    if curves:
        drawn["fashion_paper_errors"] = log_plot(
            curves,
            title="fashion: Frechet distance against the error to the reference",
            x_label="RMS error to the many-step reference, the same seeds",
            y_label="FD, not FID",
            note=f"each line one sampler at 4 to 20 evaluations, {note}",
            log_x=True,
        )
    return drawn


def short(sampler: str) -> str:
    """Without its grid."""
    return sampler.partition("@")[0]
