"""A run in parts: which tests are in a part, and the parts' results as one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from spec import recorder, results
from spec.clauses import FOLDER
from spec.expectations import known
from spec.results import Outcome, Results, ResultsError

DURATIONS = FOLDER / "durations.json"
"""The seconds that each test took once, on a plain machine; only their relation counts."""
OTHERS = 2.0  # of a test that is not in there
_PART = re.compile(r"shard (\d+)/(\d+)")


def parse(text: str) -> tuple[int, int]:
    """I/N as two numbers. Raises ValueError."""
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise ValueError(f"{text}: wanted is I/N, with I from 1 to N")


def share(names: Iterable[str], number: int, count: int) -> set[str]:
    """The tests of one part: the longest first, each to the part that has least to do so far."""
    seconds = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {}
    load = [0.0] * count
    mine: set[str] = set()
    for name in sorted(names, key=lambda name: (-seconds.get(name, OTHERS), name)):
        part = min(range(count), key=load.__getitem__)
        load[part] += seconds.get(name, OTHERS)
        if part == number - 1:
            mine.add(name)
    return mine


def durations(run: Results) -> str:
    """The text of DURATIONS after a run."""
    rows = {test["id"]: round(test["seconds"], 1) for test in run["tests"] if test["clauses"]}
    return json.dumps(rows, indent=0, sort_keys=True) + "\n"


def merge(runs: list[Results], expectations: Path | None = None) -> Results:
    """The results of several parts of one run as those of the whole, judged anew.

    Raises ResultsError where they are not of one implementation, page and kind of target, where a
    part is there twice, and where what they were restricted to does not add up.
    """
    filled = [run for run in runs if run["tests"]] or runs  # one without tests tested nothing
    first = filled[0]
    for run in filled[1:]:
        for what in ("page", "implementation"):
            if run[what] != first[what]:
                raise ResultsError(f"not parts of one run: they differ in their {what}")
        if run["target"].get("system") != first["target"].get("system"):
            raise ResultsError("not parts of one run: they differ in their target's system")
    tests: dict[str, Outcome] = {}
    for test in (test for run in runs for test in run["tests"]):
        if test["id"] not in tests:
            tests[test["id"]] = {**test}
        elif test["clauses"]:
            raise ResultsError(f"not parts of one run: {test['id']} is in several")
        else:  # about the run as a whole
            recorder.merge(tests[test["id"]], test)
    selection, missing = _selection([run["selection"] for run in runs])
    if not tests:
        raise ResultsError("no test was chosen in any part")
    if missing:
        said = [f"there are no results of {missing}"]
        said += [tests[recorder.WHOLE]["details"] or ""] if recorder.WHOLE in tests else []
        tests[recorder.WHOLE] = recorder.broken(recorder.WHOLE, "; ".join(said))
    ordered = sorted(tests.values(), key=lambda test: test["id"])
    return {
        **first,
        "started": min(run["started"] for run in runs),
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        "selection": selection,
        "clauses": results.judge(
            ordered, first["page"], known(first["implementation"], expectations)
        ),
        "tests": ordered,
    }


def _selection(parts: list[str | None]) -> tuple[str | None, str]:
    """What restricted the whole, None where the parts are all there are of one that was not; and the
    parts that are missing."""
    rest = {_PART.sub("", part or "").strip() for part in parts}
    found = [_PART.search(part or "") for part in parts]
    if len(parts) == 1 and not found[0]:
        return parts[0], ""
    if len(rest) > 1 or not all(found):
        raise ResultsError(f"not parts of one run: {'; '.join(part or 'all' for part in parts)}")
    counts = {int(match[2]) for match in found if match}
    numbers = sorted(int(match[1]) for match in found if match)
    if len(counts) > 1 or len({*numbers}) < len(numbers):
        raise ResultsError(f"not parts of one run: {'; '.join(part or 'all' for part in parts)}")
    count = counts.pop()
    absent = sorted({*range(1, count + 1)} - {*numbers})
    missing = f"shard {', '.join(map(str, absent))} of {count}" if absent else ""
    return f"{rest.pop()} {missing and f'without {missing}'}".strip() or None, missing
