"""Reports for terminals and for machines: a summary by section, JUnit XML, TAP."""

from __future__ import annotations

from xml.etree import ElementTree

from spec.results import (
    SHOWN,
    Judgement,
    Results,
    by_section,
    count,
    label,
    place,
    reasons,
    shown,
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
    width = max(len(name) for name, _ in rows)
    lines = [
        f"{label(results)} on {place(results)}, page {results['page']}, {results['started']}",
        " ".join([" " * width, *(f"{column:>12}" for column in columns)]),
    ]
    for name, counts in rows:
        cells = (f"{counts.get(column) or '.':>12}" for column in columns)
        lines.append(" ".join([f"{name:<{width}}", *cells]))
    return lines


def _why(results: Results, clause: Judgement) -> str:
    return "\n".join(reasons(results, clause)) or clause["untested"] or "no test ran"


def junit(results: Results) -> str:
    """JUnit XML: a test case for each clause in force, a class for each section."""
    times = {test["id"]: test["seconds"] for test in results["tests"]}
    suite = ElementTree.Element(
        "testsuite",
        name=f"overlay-boot spec: {label(results)}",
        timestamp=results["started"],
        hostname=place(results),
        time=str(results["seconds"]),
    )
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for clause in (clause for clause in results["clauses"] if clause["in_force"]):
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{clause['page']}.{clause['section']}".replace(" ", "_"),
            name=clause["id"],
            time=str(round(sum(times[test] for test in clause["tests"]), 3)),
        )
        totals["tests"] += 1
        verdict = "skip" if clause["expected"] else clause["verdict"]
        if verdict == "pass":
            continue
        tag, total = {"fail": ("failure", "failures"), "error": ("error", "errors")}.get(
            verdict, ("skipped", "skipped")
        )
        totals[total] += 1
        why = clause["expected"] or _why(results, clause)
        message = f"{clause['verdict']}: {clause['sentence']}"
        ElementTree.SubElement(case, tag, message=message).text = why
    suite.attrib.update({key: str(value) for key, value in totals.items()})
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def tap(results: Results) -> str:
    """TAP version 13: a line for each clause in force."""
    found = [clause for clause in results["clauses"] if clause["in_force"]]
    lines = ["TAP version 13", f"1..{len(found)}"]
    for number, clause in enumerate(found, 1):
        verdict = clause["verdict"]
        state = "not ok" if verdict in ("fail", "error") else "ok"
        why = _why(results, clause).replace("\n", "; ").replace("#", "\\#")
        note = ""
        if clause["expected"]:
            note = f" # TODO {clause['expected']}"
        elif verdict not in ("pass", "fail", "error"):
            note = f" # SKIP {verdict}: {why}"
        lines.append(f"{state} {number} - {clause['id']}{note}")
        if state == "not ok":
            lines += [f"# {clause['sentence']}", f"# {why}"]
    return "\n".join(lines) + "\n"


def compare(before: Results, after: Results) -> list[str]:
    """The clauses whose verdict differs between two runs that were both held to them."""
    old, new = (
        {clause["id"]: shown(clause) for clause in run["clauses"]} for run in (before, after)
    )
    says = {clause["id"]: clause["sentence"] for clause in after["clauses"]}
    return [
        f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}: {says.get(name, '')}"
        for name in [*old, *(name for name in new if name not in old)]
        if old.get(name) != new.get(name) and "unpromised" not in (old.get(name), new.get(name))
    ]
