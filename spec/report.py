"""Reports for terminals and for machines: a summary by section, JUnit XML, TAP."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

from spec.results import (
    SHOWN,
    Judgement,
    Results,
    by_section,
    clean,
    count,
    label,
    one_line,
    place,
    reasons,
    unbound,
)


def summary(results: Results) -> list[str]:
    """The clauses in force by section of the man pages, one line each; of a part, what ran."""
    rows = [
        (f"{page} {section}", count(found))
        for (page, section), found in by_section(results).items()
    ]
    if results["selection"]:
        rows = [(name, counts) for name, counts in rows if set(counts) - {"untested"}]
    rows.append(("all", count(results["clauses"])))
    columns = [column for column in reversed(SHOWN) if rows[-1][1].get(column)]
    if results["selection"] and "untested" in columns:
        columns.remove("untested")
    only = f", only {results['selection']}" if results["selection"] else ""
    width = max(len(name) for name, _ in rows)
    lines = [
        f"{label(results)} on {place(results)}, page {results['page']}, {results['started']}{only}",
        " ".join([" " * width, *(f"{column:>12}" for column in columns)]),
    ]
    for name, counts in rows:
        cells = (f"{counts.get(column) or '.':>12}" for column in columns)
        lines.append(" ".join([f"{name:<{width}}", *cells]))
    return lines


def _why(results: Results, clause: Judgement) -> str:
    return "\n".join(reasons(results, clause)) or clause["untested"] or "no test ran"


@dataclass(frozen=True)
class Case:
    """A row of a report for machines: a clause in force, or a test that is bound to none."""

    name: str
    group: str
    verdict: str
    says: str
    why: str
    expected: str | None
    seconds: float


def cases(results: Results) -> list[Case]:
    """The clauses in force, and what holds, or broke, for the run as a whole."""
    times = {test["id"]: test["seconds"] for test in results["tests"]}
    found = [
        Case(
            name=clause["id"],
            group=f"{clause['page']}.{clause['section']}".replace(" ", "_"),
            verdict=clause["verdict"],
            says=clean(clause["sentence"]),
            why=clean(clause["expected"] or _why(results, clause)),
            expected=clause["expected"],
            seconds=round(sum(times[test] for test in clause["tests"]), 3),
        )
        for clause in results["clauses"]
        if clause["in_force"]
    ]
    return found + [
        Case(
            name=clean(test["id"]),
            group="run",
            verdict=test["verdict"],
            says=clean(test["promise"] or test["id"]),
            why=clean(test["expected"] or test["details"] or test["reason"] or ""),
            expected=test["expected"],
            seconds=test["seconds"],
        )
        for test in unbound(results)
    ]


def junit(results: Results) -> str:
    """JUnit XML: a test case for each clause in force, a class for each section; those of class
    `run` are about the run as a whole."""
    suite = ElementTree.Element(
        "testsuite",
        name=clean(f"overlay-boot spec: {label(results)}"),
        timestamp=results["started"],
        hostname=clean(place(results)),
        time=str(results["seconds"]),
    )
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for case in cases(results):
        row = ElementTree.SubElement(
            suite, "testcase", classname=case.group, name=case.name, time=str(case.seconds)
        )
        totals["tests"] += 1
        verdict = "skip" if case.expected else case.verdict
        if verdict == "pass":
            continue
        tag, total = {"fail": ("failure", "failures"), "error": ("error", "errors")}.get(
            verdict, ("skipped", "skipped")
        )
        totals[total] += 1
        message = f"{case.verdict}: {case.says}"
        ElementTree.SubElement(row, tag, message=message).text = case.why
    suite.attrib.update({key: str(value) for key, value in totals.items()})
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def tap(results: Results) -> str:
    """TAP version 13: a line for each clause in force, and for what holds for the run as a whole."""
    found = cases(results)
    lines = ["TAP version 13", f"1..{len(found)}"]
    for number, case in enumerate(found, 1):
        state = "not ok" if case.verdict in ("fail", "error") else "ok"
        note = ""
        if case.expected:
            note = f" # TODO {_tap(case.expected)}"
        elif case.verdict not in ("pass", "fail", "error"):
            note = f" # SKIP {case.verdict}: {_tap(case.why)}"
        lines.append(f"{state} {number} - {_tap(case.name)}{note}")
        if state == "not ok":
            lines += [f"# {line}" for line in f"{case.says}\n{case.why}".split("\n")]
    return "\n".join(lines) + "\n"


def _tap(text: str) -> str:
    """A text in a line of TAP, where a bare # would begin a directive."""
    return one_line(text).replace("\\", "\\\\").replace("#", "\\#")


def compare(before: Results, after: Results) -> list[tuple[str, str]]:
    """What differs between two runs, whatever page was in force: a word (worse where it fails now,
    better where it passes now, else unknown) and a line, the worse first.

    A test is told of only where the verdicts on its clauses do not tell it.
    """
    old, new = ({c["id"]: c["verdict"] for c in run["clauses"]} for run in (before, after))
    says = {clause["id"]: clause["sentence"] for clause in (*before["clauses"], *after["clauses"])}
    changed = [name for name in says if old.get(name, "untested") != new.get(name, "untested")]
    found = [_change(name, old.get(name), new.get(name), says[name]) for name in changed]
    was, now = ({test["id"]: test for test in run["tests"]} for run in (before, after))
    for name in {**was, **now}:
        if name not in was or name not in now or {*changed} & {*now[name]["clauses"]}:
            continue
        pair = was[name]["verdict"], now[name]["verdict"]
        if pair[0] != pair[1]:
            found.append(_change(name, *pair, now[name]["promise"]))
    # What tells of the run as a whole is there only where it is bad.
    for name, test in now.items():
        if name not in was and not test["clauses"] and test["verdict"] != "pass":
            found.append(_change(name, None, test["verdict"], test["reason"] or ""))
    order = ("worse", "unknown", "better")
    return sorted(found, key=lambda row: order.index(row[0]))


def _change(name: str, old: str | None, new: str | None, says: str) -> tuple[str, str]:
    pair = (old or "untested", new or "untested")
    word = {"pass": "better", "fail": "worse"}.get(pair[1], "unknown")
    return word, f"{name}: {pair[0]} -> {pair[1]}: {one_line(says)}"
