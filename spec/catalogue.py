"""Which tests there are for which clause, found by pytest's own collection: nothing is booted."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from spec import expectations, reference
from spec.clauses import FOLDER, NEEDS_TEST, PageError, clauses

WORDS = 5  # of a sentence, at least
# It begins with a capital, or with the name of a command, a file or the like, and has its full stop.
SENTENCE = re.compile(r"(?:[A-Z]|\S*[-_/(`])(?s:.*)\.\s*")


@dataclass(eq=False)  # pytest wants its plugins hashable
class Catalogue:
    """Collects, as a plugin of pytest, each test's clauses."""

    tests: dict[str, list[str]] = field(default_factory=dict)
    promises: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Note a test and its clauses."""
        name = item.nodeid.removeprefix(f"{FOLDER.name}/")
        self.promises[name] = inspect.getdoc(getattr(item, "function", item)) or ""
        self.tests[name] = [
            str(name) for mark in item.iter_markers("clause") for name in mark.args
        ]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note what cannot be collected."""
        if report.failed:
            self.errors.append(report.longreprtext)

    def of(self, clause: str) -> list[str]:
        """The tests of one clause."""
        return [test for test, ids in self.tests.items() if clause in ids]


def collect() -> Catalogue:
    """All tests of the spec. Raises PageError where pytest cannot collect them."""
    found = Catalogue()
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        words = ["--collect-only", "-q", "-p", "no:cacheprovider", str(FOLDER)]
        words += ["-c", str(FOLDER / "spec.ini"), f"--rootdir={FOLDER.parent}"]
        status = pytest.main(words, plugins=[found])
    if found.errors:
        raise PageError("\n".join(found.errors))
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise PageError(f"pytest cannot collect {FOLDER}:\n{out.getvalue()}")
    return found


def problems(found: Catalogue) -> list[str]:
    """What keeps the spec from being whole: clauses without a test, expectations of nothing."""
    tested = {name for ids in found.tests.values() for name in ids}
    lines = [
        f"{clause.page}.adoc:{clause.line}: no test checks {clause.id} ({clause.level})"
        for clause in clauses().values()
        if clause.level in NEEDS_TEST and clause.id not in tested and not clause.untested
    ]
    if lines:
        lines.append('write a test, or say ,untested="why" in the mark of the clause')
    lines += [
        f"{clause.page}.adoc:{clause.line}: {clause.id} has a test after all: drop its untested"
        for clause in clauses().values()
        if clause.untested and clause.id in tested
    ]
    lines += [
        f"{test} checks clauses of different versions of the page, make it several: {' '.join(ids)}"
        for test, ids in found.tests.items()
        if len({clauses()[name].pages for name in ids if name in clauses()}) > 1
    ]
    lines += [
        f"{test}: its docstring stands in reports for a promise, make it a sentence: {says!r}"
        for test, says in found.promises.items()
        if len(says.split()) < WORDS or not SENTENCE.fullmatch(says)
    ]
    lines += [f"no man page has the clause {name}" for name in sorted(tested - clauses().keys())]
    for file in sorted((FOLDER / "expectations").glob("*.toml")):
        unknown = expectations.load(file).tests.keys() - found.tests.keys()
        lines += [f"{file.name}: no such test: {name}" for name in sorted(unknown)]
    return lines


def check(page_text: Path | None) -> list[str]:
    """All that is wrong with marks, tests, expectations and the coverage table."""
    return problems(collect()) + reference.problems(page_text)
