"""docs/conformance.md: clause by clause, each implementation on each system."""

from __future__ import annotations

import re

from spec.clauses import clauses
from spec.results import SHOWN, Results, align, count, label, place, reasons, shown

HEAD = """\
# Conformance

Made by `make conformance` from the results of `python -m spec run`: do not edit. Every line is a
promise of a man page in `spec/`, every column a run of the whole suite; "expected" is a failure
that the implementation's file in `spec/expectations/` explains, "unpromised" a clause that is not
in the version of the page that the run was held to, "precondition" one that the system cannot
show.
"""


def _cell(text: str) -> str:
    return re.sub(r"([|*_<])", r"\\\1", text).replace("\n", "<br>")


def _row(*cells: str) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def conformance(runs: list[Results]) -> str:
    """The page for these runs, in their order."""
    names = [chr(ord("A") + number) for number in range(len(runs))]
    found = [align(run) for run in runs]
    columns = list(reversed(SHOWN))
    lines = [HEAD, _row("", "implementation", "system", "page", "date", *columns)]
    lines.append("|---" * (5 + len(columns)) + "|")
    for name, run in zip(names, runs, strict=True):
        numbers = count(run["clauses"])
        unused = sum(not clause["in_force"] for clause in run["clauses"])
        numbers |= {"unpromised": unused} if unused else {}
        cells = [str(numbers.get(column, "")) for column in columns]
        lines.append(_row(name, label(run), place(run), run["page"], run["started"][:10], *cells))
    heading = ""
    notes: list[str] = []
    for clause in clauses().values():
        if heading != (heading := f"{clause.page}: {clause.section}"):
            lines += ["", f"## {heading}", "", _row("clause", "promise", *names)]
            lines.append("|---" * (2 + len(names)) + "|")
        cells = []
        same: dict[str, list[str]] = {}
        for name, run, judged in zip(names, runs, (run[clause.id] for run in found), strict=True):
            verdict = shown(judged)
            cells.append(SHOWN[verdict] if verdict == "pass" else f"{SHOWN[verdict]} {verdict}")
            if verdict not in ("pass", "unpromised"):
                why = judged["expected"] or "; ".join(reasons(run, judged)) or clause.untested
                same.setdefault(f"{verdict}: {_cell(why or 'no test ran')}", []).append(name)
        notes += [f"- `{clause.id}` {', '.join(at)}, {why}" for why, at in same.items()]
        lines.append(_row(f"`{clause.id}`", clause.sentence, *cells))
    if notes:
        lines += ["", "## What did not pass, and why", "", *notes]
    return "\n".join(lines) + "\n"
