"""What the report says of some runs, in words: a verdict for each, and what failed by its cause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from spec.results import (
    SHOWN,
    Judgement,
    Outcome,
    Results,
    align,
    count,
    label,
    shown,
    surprises,
    trouble,
    unbound,
)

WORDS = {
    "pass": ("kept", "all tests of the promise passed"),
    "fail": ("not kept", "the implementation does something else"),
    "error": ("test broke", "the test or its machine broke: whether it is kept is not known"),
    "expected": ("known failure", "not kept, for a reason that is listed as known"),
    "precondition": ("not testable here", "the machine lacks what the test needs"),
    "skip": ("left out", "the test was left out"),
    "untested": ("not tested", "no test ran"),
    "unpromised": ("not promised", "this version of the man page does not promise it"),
}
"""The verdicts as people read them: a few words, and what they mean."""
AGAINST = {
    "ours": "the man pages of this project",
    "1.2": "the man page of version 1.2",
    "1.6": "the man page of version 1.6, Debian's",
}
WHERE = {
    "here": "in a sandbox of namespaces",
    "host": "the machine itself",
    "vm": "a fresh virtual machine for each test",
    "ssh": "another machine, over ssh",
}
REPRODUCE = "to reproduce by hand"
_CLASS = re.compile(r"(?:\w+\.)*(\w*(?:Error|Exception|Failed|Timeout\w*|Exit|Iteration)):? ?")
_RESULT = re.compile(r"\$ (\S+)[^\n]*\n(.*)\(status (\d+)\).*", re.DOTALL)  # spec.targets.Result
_CHANGING = re.compile(r"0x[0-9a-f]+|\bs\d+x\d+|\d{3,}")  # addresses, subhosts' names, pids


@dataclass(frozen=True)
class Run:
    """One run, and the letter that stands for it beside others."""

    results: Results
    letter: str = ""

    @cached_property
    def verdicts(self) -> dict[str, Judgement]:
        """The verdict on each clause of the pages."""
        return align(self.results)

    @cached_property
    def tests(self) -> dict[str, Outcome]:
        """What came of each test."""
        return {test["id"]: test for test in self.results["tests"]}

    @property
    def label(self) -> str:
        """The implementation's name and version."""
        return label(self.results)

    @property
    def against(self) -> str:
        """Whose promises it was held to."""
        return AGAINST.get(self.results["page"], self.results["page"])

    @property
    def where(self) -> str:
        """The system, its kernel, and how the tests ran on it."""
        target = self.results["target"]
        kind = target.get("name", "").partition("://")[0]
        kernel = f"kernel {target['kernel']}" if target.get("kernel") else ""
        how = target.get("note") or WHERE.get(kind, "")
        if "fresh=no" in target.get("name", ""):
            how = "all tests in one virtual machine"
        return ", ".join(filter(None, [target.get("system"), kernel, how])) or "unknown machine"

    @property
    def when(self) -> str:
        """When it began, and how long it took."""
        began = datetime.fromisoformat(self.results["started"])
        seconds = self.results["seconds"]
        took = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
        return f"{began:%-d %b %Y, %H:%M} UTC, took {took}"

    @cached_property
    def tally(self) -> dict[str, int]:
        """How many promises have each verdict, of those that are in force."""
        found = count(self.verdicts.values())
        if self.results["selection"]:
            found.pop("untested", None)
        return {verdict: found[verdict] for verdict in SHOWN if found.get(verdict)}

    @property
    def broken(self) -> list[Outcome]:
        """What failed of the run as a whole, apart from any promise."""
        return [
            test
            for test in unbound(self.results)
            if test["verdict"] in ("fail", "error") and not test["expected"]
        ]

    @property
    def surprises(self) -> list[str]:
        """What passes although it is listed as a known failure."""
        return surprises(self.results)

    @property
    def tone(self) -> str:
        """good: every promise was kept or its failure known; bad: it was not; odd: not all is
        known."""
        if self.broken or self.tally.get("fail") or self.tally.get("error"):
            return "bad"
        return "odd" if trouble(self.results) or not self.tally else "good"

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        whole, bad, odd = sum(self.tally.values()), self.tally.get("fail"), self.tally.get("error")
        tested = "tested " if self.results["selection"] else ""
        what = f"{whole} {tested}promise{'s' if whole != 1 else ''}"
        if bad:
            return f"{bad} of {what} not kept"
        if odd:
            return f"{odd} of {what} could not be judged: the tests broke"
        if self.broken:
            return f"None of {what} broken, but the run itself failed"
        kept = self.tally.get("pass", 0)
        if not whole:
            return "Nothing was tested"
        return f"All {what} kept" if kept == whole > 1 else f"{kept} of {what} kept, none broken"

    @property
    def rest(self) -> str:
        """What the verdict leaves out, in a few words; empty if nothing."""
        known = [
            f"{number} {WORDS[verdict][0]}"
            for verdict, number in self.tally.items()
            if verdict not in ("pass", "fail")
        ]
        known += [f"the run itself: {told(test)[0]}" for test in self.broken]
        return "; ".join(known)


def _ended(result: re.Match[str]) -> str:
    """A command's result in words: none where it succeeded, since something else failed then."""
    command, said, status = result.groups()
    last = next(reversed(said.strip().splitlines()), "")
    if status == "0":
        return ""
    return f"{command.rpartition('/')[2]} ended with status {status}" + (
        f": {last}" if last else ""
    )


def told(test: Outcome) -> tuple[str, str]:
    """Why a test did not pass: in words, and as the assertion that noticed it."""
    lines = (test["details"] or "").splitlines()
    marked = [number for number, line in enumerate(lines) if re.match(r"E( |$)", line)]
    block = [line for number, line in enumerate(lines) if marked and number <= marked[-1]]
    said: list[str] = []
    for line in reversed(block):
        if not re.match(r"E( |$)", line):
            break
        said.insert(0, line[1:].strip())
    if not said:
        said = (test["reason"] or "").splitlines()
    kind = _CLASS.match(said[0]) if said else None
    if kind:
        said[0] = said[0][kind.end() :]
    cut = next((n for n, line in enumerate(said) if line.startswith("assert ")), len(said))
    words, asserted = "\n".join(said[:cut]).strip(), "\n".join(said[cut:]).strip()
    if kind and kind[1] == "KeyError":
        words = f"there is no {words}"
    words = _RESULT.sub(_ended, words)
    words = " ".join(words.split()).removesuffix(":")
    if len(words) > 240:
        words = f"{words[:240]} …"
    return words or f"Expected: {test['promise']}", asserted


@dataclass
class Cause:
    """What one reason has kept from being shown: promises and tests, over all runs."""

    verdict: str
    words: str
    promises: dict[str, list[Run]] = field(default_factory=dict)
    """The clauses that are concerned, and the runs in which they are."""
    tests: list[tuple[Run, Outcome]] = field(default_factory=list)
    number: int = 0

    @property
    def runs(self) -> list[Run]:
        """The runs in which it was seen."""
        seen = [run for runs in self.promises.values() for run in runs]
        seen += [run for run, _ in self.tests]
        return sorted({run.letter: run for run in seen}.values(), key=lambda run: run.letter)

    def add(self, run: Run, clause: str | None, test: Outcome | None = None) -> None:
        """Count a promise among those concerned, with the test that showed it."""
        if clause and run not in (seen := self.promises.setdefault(clause, [])):
            seen.append(run)
        if test and (run, test) not in self.tests:
            self.tests.append((run, test))


def _reasons(run: Run, clause: Judgement) -> Iterator[tuple[str, Outcome | None]]:
    """Each reason why a clause did not pass, with its test where that failed."""
    tests = [run.tests[name] for name in clause["tests"] if name in run.tests]
    verdict = shown(clause)
    if verdict in ("fail", "error"):
        for test in tests:
            if test["verdict"] in ("fail", "error") and not test["expected"]:
                yield told(test)[0], test
        return
    why = clause["expected"] or clause["untested"] or ""
    for test in [] if why else tests:
        why = test["reason"] or why
    yield why or "no test ran", None


def causes(runs: Iterable[Run]) -> list[Cause]:
    """What did not pass, by its cause: the worst first, and of these what concerns most.

    Two failures have one cause where they go by the same words, or one test showed both, with
    other values.
    """
    found: dict[tuple[str, str], Cause] = {}

    def cause(verdict: str, words: str, test: Outcome | None) -> Cause:
        keys = [(verdict, _CHANGING.sub("N", words))]
        keys += [(verdict, test["id"].partition("[")[0])] if test else []
        known = next((found[key] for key in keys if key in found), Cause(verdict, words))
        for key in keys:
            found.setdefault(key, known)
        return known

    for run in runs:
        for clause in run.verdicts.values():
            verdict = shown(clause)
            if verdict in run.tally and verdict != "pass":
                for words, test in _reasons(run, clause):
                    cause(verdict, words, test).add(run, clause["id"], test)
        for test in run.broken:
            cause(test["verdict"], told(test)[0], test).add(run, None, test)
    ordered = sorted(
        {id(one): one for one in found.values()}.values(),
        key=lambda one: (list(SHOWN).index(one.verdict), -len(one.promises)),
    )
    for number, one in enumerate(ordered, 1):
        one.number = number
    return ordered
