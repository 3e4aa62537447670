"""Writes all reports beside results.json, once it is there: `-p spec.reporter`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spec import report, results
from spec.files import give


def write(path: Path) -> None:
    """The reports on one results file: HTML, JUnit XML, TAP. Raises ResultsError."""
    from spec.report_html import html

    run = results.load(path)
    give(path)
    for suffix, text in ((".xml", report.junit(run)), (".tap", report.tap(run))):
        _put(path.with_suffix(suffix), text)
    _put(path.with_suffix(".html"), html([run]))


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    give(path)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write them. Where that fails the run does too, but its verdict is the first to count."""
    path: Path | None = session.config.getoption("--results")
    if path is None or hasattr(session.config, "workerinput") or not path.exists():
        return
    try:
        write(path)
    except (results.ResultsError, OSError) as error:
        print(f"\nspec: the reports of {path} are not whole: {error}", file=sys.stderr)
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
