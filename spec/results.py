"""What a run found: results.json (see spec/results.schema.json), and what follows from it."""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict, cast

from spec.clauses import NEEDS_TEST, clauses
from spec.expectations import Expectations

SCHEMA = 1
LIMIT = 64 * 1024
SHOWN = {
    "error": "!",
    "fail": "✗",
    "expected": "≈",
    "precondition": "?",
    "skip": "»",
    "untested": "○",
    "pass": "✓",
    "unpromised": "–",
}
"""The verdicts as reports show them, worst first, each with its sign."""
NAMES = {"ours": "overlay-boot-python", "debian": "Debian's overlay-boot"}
"""The implementations as people call them."""
VERDICTS = ("error", "fail", "precondition", "skip", "pass", "untested")
"""Worst first. error: the harness broke. precondition: this target cannot show the promise."""


class Evidence(TypedDict):
    """Something seen during a test: a title, and text as it was."""

    title: str
    text: str


class Outcome(TypedDict):
    """One test: the promise that its docstring states, and what came of it."""

    id: str
    promise: str
    clauses: list[str]
    verdict: str
    seconds: float
    reason: str | None
    """Why it was skipped, or in one line why it failed."""
    details: str | None
    evidence: list[Evidence]
    expected: str | None
    """Why this failure was known before."""


class Judgement(TypedDict):
    """One clause with the verdict that its tests add up to."""

    id: str
    page: str
    section: str
    topic: str
    level: str
    since: str
    sentence: str
    decisions: list[str]
    in_force: bool
    verdict: str
    expected: str | None
    surprise: bool
    """It passes although it is known to fail."""
    untested: str | None
    tests: list[str]


class Results(TypedDict):
    """One run."""

    schema: int
    page: str
    implementation: dict[str, str]
    target: dict[str, str]
    started: str
    seconds: float
    selection: str | None
    """What restricted the run to some of the tests; None for all."""
    clauses: list[Judgement]
    tests: list[Outcome]


class ResultsError(Exception):
    """A file that is no results.json of this schema."""


def clean(text: str) -> str:
    """Text as reports can hold it: no control characters, no broken UTF-8, the end of much."""
    if len(text) > LIMIT:
        text = f"[{len(text) - LIMIT} characters left out]\n{text[-LIMIT:]}"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    text = re.sub(r"\r\n|[\x85\u2028\u2029]", "\n", text)
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def one_line(text: str) -> str:
    """The beginning of a text as one line."""
    return textwrap.shorten(clean(text[:LIMIT]), 240, placeholder=" …")


def worst(verdicts: Iterable[str]) -> str:
    """The verdict of several together: pass only if all passed, untested if there is none."""
    return min(verdicts, key=VERDICTS.index, default="untested")


def judge(
    tests: list[Outcome], page: str, expectations: Expectations | None = None
) -> list[Judgement]:
    """The verdict on every clause, in the order of the pages."""
    known = (expectations or Expectations()).clauses
    by_clause: dict[str, list[Outcome]] = {}
    for test in tests:
        for name in test["clauses"]:
            by_clause.setdefault(name, []).append(test)
    found: list[Judgement] = []
    for clause in clauses().values():
        mine = by_clause.get(clause.id, [])
        failed = [test for test in mine if test["verdict"] in ("fail", "error")]
        excused = [test["expected"] for test in failed]
        verdict = worst(test["verdict"] for test in mine)
        found.append(
            {
                "id": clause.id,
                "page": clause.page,
                "section": clause.section,
                "topic": clause.topic,
                "level": clause.level,
                "since": clause.since,
                "sentence": clause.sentence,
                "decisions": list(clause.decisions),
                "in_force": page in clause.pages,
                "verdict": verdict,
                "expected": excused[0] if excused and all(excused) else None,
                "surprise": clause.id in known and verdict == "pass",
                "untested": clause.untested,
                "tests": [test["id"] for test in mine],
            }
        )
    return found


def excuse(test: Outcome, expectations: Expectations) -> str | None:
    """Why this outcome was known before, or why it was thought to fail; None if neither."""
    if test["verdict"] not in ("fail", "pass"):
        return None
    return expectations.reason(test["id"], test["clauses"], test["details"])


def judge_anew(results: Results, expectations: Expectations) -> Results:
    """The same outcomes in the light of these known failures."""
    tests = results["tests"]
    for test in tests:
        test["expected"] = excuse(test, expectations)
    return {**results, "clauses": judge(tests, results["page"], expectations)}


def align(results: Results) -> dict[str, Judgement]:
    """A run's verdicts for every clause of the pages as they are now; new ones are untested."""
    judged = judge([], results["page"]) + results["clauses"]
    return {clause["id"]: clause for clause in judged if clause["id"] in clauses()}


def unbound(results: Results) -> list[Outcome]:
    """What tells of the run itself and of no clause in force: what was asked of the run as a whole,
    and tests that broke."""
    force = {clause["id"] for clause in results["clauses"] if clause["in_force"]}
    return [
        test
        for test in results["tests"]
        if not test["clauses"]
        or (test["verdict"] == "error" and force.isdisjoint(test["clauses"]))
    ]


def findings(results: Results) -> list[tuple[str, str]]:
    """What is in the way of success: verdicts, each with a line on it, the worst first.

    Clauses with one and the same reason share a line.
    """
    found: dict[str, dict[str, list[str]]] = {verdict: {} for verdict in VERDICTS}
    for test in unbound(results):
        if test["verdict"] != "pass" and not test["expected"]:
            found[test["verdict"]][f"{test['id']}: {test['reason']}"] = []
    for clause in results["clauses"]:
        verdict = shown(clause)
        why = (reasons(results, clause) or [clause["sentence"]])[0]
        if verdict in ("fail", "error", "precondition", "skip"):
            found[verdict].setdefault(why, []).append(clause["id"])
        elif verdict == "untested" and not (
            clause["untested"] or results["selection"] or clause["level"] not in NEEDS_TEST
        ):
            found[verdict].setdefault("no test ran", []).append(clause["id"])
    return [
        (verdict, f"{', '.join(ids)}: {line}" if ids else line)
        for verdict, lines in found.items()
        for line, ids in lines.items()
    ]


def trouble(results: Results, *, allow_preconditions: bool = False) -> list[str]:
    """Why the run is not a success; preconditions are no reason where allowed."""
    return [
        f"{verdict} {line}"
        for verdict, line in findings(results)
        if not (allow_preconditions and verdict == "precondition")
    ]


def surprises(results: Results) -> list[str]:
    """Clauses and tests that pass although they are known to fail."""
    found = [clause["id"] for clause in results["clauses"] if clause["surprise"]]
    ids = {name for clause in results["clauses"] if clause["surprise"] for name in clause["tests"]}
    return found + [
        test["id"]
        for test in results["tests"]
        if test["expected"] and test["verdict"] == "pass" and test["id"] not in ids
    ]


def shown(clause: Judgement) -> str:
    """The verdict as reports show it: known failures and clauses not in force stand apart."""
    if not clause["in_force"]:
        return "unpromised"
    return "expected" if clause["expected"] else clause["verdict"]


def count(found: Iterable[Judgement]) -> dict[str, int]:
    """How many of the clauses in force have each verdict, as shown."""
    return dict(Counter(shown(clause) for clause in found if clause["in_force"]))


def reasons(results: Results, clause: Judgement) -> list[str]:
    """Why a clause did not pass, as its tests say."""
    found = [test["reason"] for test in results["tests"] if test["id"] in clause["tests"]]
    return [reason for reason in found if reason]


def by_section(results: Results) -> dict[tuple[str, str], list[Judgement]]:
    """The clauses by page and section, in the pages' order."""
    found: dict[tuple[str, str], list[Judgement]] = {}
    for clause in results["clauses"]:
        found.setdefault((clause["page"], clause["section"]), []).append(clause)
    return found


def label(results: Results) -> str:
    """The implementation's name and version, for headings."""
    about = results["implementation"]
    name = about.get("name", "unknown")
    return f"{NAMES.get(name, name)} {about.get('version', '')}".strip()


def place(results: Results) -> str:
    """The target in a few words."""
    target: Mapping[str, str] = results["target"]
    words = (target.get(key, "") for key in ("system", "kernel", "name", "note"))
    return ", ".join(filter(None, words)) or "unknown target"


def load(path: Path) -> Results:
    """Read a results file. Raises ResultsError in one line."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: cannot be read as results: {error}") from None
    known = isinstance(data, dict) and data.get("schema") == SCHEMA
    if not known or not Results.__required_keys__ <= data.keys():
        raise ResultsError(f"{path}: not results of schema {SCHEMA}: make them anew with spec run")
    return cast(Results, data)


def regular(path: Path) -> None:
    """Raise ResultsError where there is something other than a regular file, which the results would
    replace."""
    if path.exists() and not path.is_file():
        raise ResultsError(f"{path}: it is not a regular file: name another for the results")


def writable(path: Path) -> None:
    """Make a file where results are to be, to see that it can be. Raises ResultsError."""
    regular(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise ResultsError(f"{path}: the results cannot be written: {error.strerror}") from None


def save(results: Results, path: Path) -> None:
    """Write a results file, whole or not at all."""
    regular(path)
    fresh = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(path)
