"""README and docs/: every file that they link or name exists, and figures are those of the files beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .pages import LINK, OTHERS, PAGES, ROOT, SPAN, name_of, prose

FOLDERS = ("cli", "bench", "quality", "export", "engine", "kernels", "tests", "docs", ".ci")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", one.replace("`", "")).strip().lower().replace(" ", "-") for one in found}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_relative_links_exist(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        assert target.is_relative_to(ROOT), f"{name_of(page)}: {link} leads out of the repository"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: {link} has no such heading"


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_named_files_exist(page):
    """Every path and every `python -m pfdiff...` in backticks."""
    missing = [span for span, path in named_files(prose(page)) if not path.exists()]
    assert not missing, f"{name_of(page)}: there is no {', '.join(missing)}"


def named_files(text: str) -> Iterator[tuple[str, Path]]:
    """(as it is written, path); `name.py` alone stands beside the last path of its line."""
    for line in text.splitlines():
        folder: Path | None = None
        for span in SPAN.findall(line):
            module = re.fullmatch(r"python -m pfdiff\.([a-z_.]+)(?: .*)?", span)
            if re.fullmatch(rf"({'|'.join(map(re.escape, FOLDERS))})/[\w./-]*", span):
                folder = (ROOT / span).parent
                yield span, ROOT / span
            elif module and not module[1].endswith("."):  # `pfdiff.bench.studies.NAME` is not one
                yield span, ROOT / (module[1].replace(".", "/") + ".py")
            elif folder is not None and re.fullmatch(r"\w+\.(py|cpp|h)", span):
                yield span, folder / span


def test_a_missing_file_is_noticed():
    missing = [span for span, path in named_files("`engine/api.py`, `none.py`, `bench/none.py`") if not path.exists()]
    assert missing == ["none.py", "bench/none.py"]


def test_every_study_is_listed():
    """The table of docs/guides/benchmarking.md names every program of bench/studies, and nothing else."""
    table = prose(ROOT / "docs" / "guides" / "benchmarking.md").partition("## The studies")[2]
    listed = {name for row in table.splitlines() if row.startswith("| `") for name in SPAN.findall(row.split("|")[1])}
    folder = ROOT / "bench" / "studies"
    programs = {
        ".".join(one.relative_to(folder).with_suffix("").parts)
        for one in folder.rglob("*.py")
        if "__main__" in one.read_text(encoding="utf-8")
    }
    assert listed == programs


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_pages_are_reached(page):
    """docs/README.md lists every page of docs/."""
    index = ROOT / "docs" / "README.md"
    if page.is_relative_to(ROOT / "docs") and page != index:
        assert page.relative_to(index.parent).as_posix() in LINK.findall(prose(index))


# Numbers.
def test_every_row_of_results_has_a_file():
    """In the README's table every row; in docs/results.md every table or the text since its heading."""
    rows = [row for row in table_rows(ROOT / "README.md") if "bench/results/" in row]
    assert len(rows) == 6
    for section in re.split(r"^#+ ", prose(ROOT / "docs" / "results.md"), flags=re.M)[1:]:
        title, _, body = section.partition("\n")
        inherited = title.startswith(("PFDiff over", "Against", "Past", "Over DPM", "How few"))  # of their section
        assert "../bench/results/" in body or "|" not in body or inherited, f"{title}: no file beside its numbers"


def table_rows(page: Path) -> list[str]:
    return [line for line in prose(page).splitlines() if line.startswith("|")]


def stored(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / name).read_text(encoding="utf-8"))


def figures() -> dict[str, str]:
    """The README's six figures, computed from the files beside them: the beginning of a row -> the figure."""
    machine = "amd-epyc-2-cores"
    search = {name: stored(f"{machine}/medians_{name}.json")["nfe"]["8"] for name in ("fashion", "mnist")}
    ratios = {name: one["ratios"]["refined / ddim"] for name, one in search.items()}
    rows = stored("fashion_paper.json")["conditional"]["rows"]
    distance = rows["pfdiff:k=2,l=1@uniform"]["8"]["fd"] / rows["ddim@uniform"]["8"]["fd"]
    whole = [one for one in stored(f"{machine}/fashion_batch1.json")["figures"] if one["nfe"] == 8]
    suite = stored(f"{machine}/0011_dfbf732d8fd6.json")["benchmarks"]
    eager = suite["test_pytorch[fashion-eager-ddim]"]["ratios"]["pfdiff on onnxruntime fp32 / this"]["value"]
    bf16 = suite["test_pytorch[cifar-eager-ddim-bf16]"]["ratios"]["pfdiff on openvino bf16 / this"]["value"]
    return {
        "error on `fashion`, 8 evaluations": f"{ratios['fashion']:.2f}",
        "the same on MNIST": f"{ratios['mnist']:.2f}",
        "Frechet distance (not FID) on `fashion`, 8 evaluations": f"{distance:.2f}",
        "time on `fashion`, batch 1": f"{whole[0]['overhead']:.2f}",
        "time on `fashion`, fp32, one thread": f"{1 / eager:.1f}",
        "the same for a 36 M U-Net": f"{1 / bf16:.1f}",
    }


def test_the_figures_of_the_readme_are_those_of_their_files():
    rows = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in table_rows(ROOT / "README.md")}
    for beginning, figure in figures().items():
        (shown,) = [value for what, value in rows.items() if what.startswith(beginning)]
        assert shown == figure, beginning


@pytest.mark.parametrize("network", ["fashion", "mnist"])
def test_the_errors_of_the_search_are_those_of_their_file(network):
    """docs/results.md has every median of medians_*.json, to three digits."""
    (section,) = re.findall(
        rf"from \[medians_{network}\.json\].*?\n\n(\|.*?)\n\n", prose(ROOT / "docs" / "results.md"), re.S
    )
    shown = re.findall(r"^(?:\|[^|]*){2}\| (0\.\d{3}) \|", section, re.M)
    errors = [stored(f"amd-epyc-2-cores/medians_{network}.json")["nfe"][nfe]["errors"] for nfe in ("5", "8")]
    names = ("ddim", "peer", "tuned", "refined")
    assert shown == [f"{one[name]:.3f}" for one in errors for name in names]


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
