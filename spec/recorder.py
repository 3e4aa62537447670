"""Puts all tests together: results.json, the terminal's summary, the exit status."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from spec import results
from spec.clauses import FOLDER
from spec.expectations import known
from spec.results import Outcome, Results

About = dict[str, dict[str, str]]
WHOLE = "A run comes to its end."
PHASES = ("setup", "call", "teardown")
BROKEN = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)


def merge(whole: Outcome, part: Outcome) -> None:
    """Add a later phase of a test (setup, call, teardown) to what is known of it."""
    whole["seconds"] = round(whole["seconds"] + part["seconds"], 3)
    by_title = {seen["title"]: seen for seen in whole["evidence"] + part["evidence"]}
    whole["evidence"] = list(by_title.values())  # the last of each title
    if results.VERDICTS.index(part["verdict"]) < results.VERDICTS.index(whole["verdict"]):
        whole["verdict"] = part["verdict"]
        whole["reason"] = part["reason"]
        whole["details"] = part["details"]
        whole["expected"] = part["expected"]


def selection(session: pytest.Session) -> str | None:
    """What restricts a run to some of the spec's tests; None for all of them."""
    config = session.config
    words = [f"-k {config.option.keyword}"] if config.option.keyword else []
    marks = config.option.markexpr
    words += [f"-m {marks}"] if marks not in ("", "not vm") else []  # pyproject.toml's default
    if config.option.shard:
        words.append(f"shard {config.option.shard}")
    words += [f"--deselect {name}" for name in config.option.deselect or []]
    words += [f"--ignore {name}" for name in config.option.ignore or []]
    words += [f"--ignore-glob {name}" for name in config.option.ignore_glob or []]
    paths = [config.invocation_params.dir / word for word in config.args]
    if FOLDER.resolve() not in [path.resolve() for path in paths]:
        words += config.args
    if (
        session.shouldstop
        or session.shouldfail
        or session.exitstatus == pytest.ExitCode.INTERRUPTED
    ):
        words.append("stopped early")
    return " ".join(words) or None


def broken(nodeid: str, why: str) -> Outcome:
    """The outcome of a test, or of the run, around which something broke."""
    name = nodeid.removeprefix(f"{FOLDER.name}/")
    return {
        "id": name,
        "promise": name if name == WHOLE else "",
        "clauses": [],
        "verdict": "error",
        "seconds": 0,
        "reason": results.one_line(why),
        "details": why,
        "evidence": [],
        "expected": None,
    }


def page_of(config: pytest.Config) -> str:
    """The version of the page whose promises are in force."""
    return config.getoption("--page") or "ours"


class Recorder:
    """The plugin object of the process that prints: the only one, or xdist's controller."""

    def __init__(self, config: pytest.Config, about: About, whole: list[Outcome]) -> None:
        self.config = config
        self.about = about
        self.whole = whole
        self.tests: dict[str, Outcome] = {}
        self.started = time.time()
        self.results: Results | None = None
        self.running: dict[str, None] = {}  # the tests that have begun and not ended
        self.ended = 0  # so many have
        self.died = 0  # workers that died outside of a test

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Take away earlier results: those that are found afterwards are of this run."""
        if path := self.config.getoption("--results"):
            try:
                results.writable(path)
            except results.ResultsError as error:
                raise pytest.UsageError(str(error)) from None
            path.unlink(missing_ok=True)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note that a test has begun."""
        self.running[nodeid] = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in one phase of one test."""
        part: Outcome | None = getattr(report, "spec", None)
        if part is None and report.failed and report.when not in PHASES:
            # xdist tells of a worker that died.
            part = broken(report.nodeid, results.clean(report.longreprtext))
            self.died -= 1
        if part is not None:
            self.take(part)
            self.tell(part)
        self.about.update(getattr(report, "spec_about", {}))
        if report.when not in PHASES[:-1]:
            self.ended += 1
            self.running.pop(report.nodeid, None)

    def take(self, part: Outcome) -> None:
        """Take in what is known of a test, or more of it."""
        if part["id"] in self.tests:
            merge(self.tests[part["id"]], part)
        else:
            self.tests[part["id"]] = part

    def tell(self, part: Outcome) -> None:
        """Say at once what went wrong: the end of a run may be half an hour away."""
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal and part["verdict"] in ("fail", "error") and not part["expected"]:
            terminal.write_line(f"\n{part['verdict']} {part['id']}: {part['reason']}", red=True)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Learn from a worker of xdist what was tested, and where."""
        said = getattr(node, "workeroutput", {}).get("spec")
        if said is None:
            self.died += 1
            return
        about, whole = said
        self.about.update(about)
        self.whole += whole

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Take in what could not even be read of the spec."""
        spec = self.config.getoption("--results") or report.nodeid.startswith(f"{FOLDER.name}/")
        if report.failed and spec:
            self.take(broken(report.nodeid, results.clean(report.longreprtext)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Judge the clauses, write the results, and let them decide the exit status."""
        for name in self.running:
            self.take(broken(name, "the run ended in the middle of this test"))
        nothing = session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
        empty = nothing and self.config.option.shard
        if empty:  # of few tests, in many parts
            session.exitstatus = pytest.ExitCode.OK
        elif not self.tests:
            return
        for outcome in self.whole:
            self.take(outcome)
        why: list[str] = []
        wanted = self.ended if session.shouldfail else session.testscollected
        if session.shouldstop or session.exitstatus in BROKEN or self.ended < wanted:
            why.append(f"{self.ended} of {session.testscollected} tests came to their end")
        why += [str(session.shouldstop)] if session.shouldstop else []
        why += [f"{self.died} of the workers died outside of a test"] if self.died > 0 else []
        if why:
            self.take(broken(WHOLE, ": ".join(why)))
        page = page_of(self.config)
        about = self.about.get("implementation", {})
        expected = known(about, self.config.getoption("--expectations"))
        tests = sorted(self.tests.values(), key=lambda test: test["id"])
        self.results = {
            "schema": results.SCHEMA,
            "page": page,
            "implementation": about,
            "target": self.about.get("target", {}),
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self.started, 1),
            "selection": selection(session),
            "clauses": results.judge(tests, page, expected),
            "tests": tests,
        }
        path: Path | None = self.config.getoption("--results")
        if path:
            results.save(self.results, path)
        allowed = self.config.getoption("--allow-preconditions")
        trouble = results.trouble(self.results, allow_preconditions=allowed)
        if trouble and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the verdicts by section of the man pages, and what is not as it should be."""
        if self.results is None:
            return
        from spec.report import summary

        terminalreporter.section("man pages")
        for line in summary(self.results):
            terminalreporter.line(line)
        for verdict, line in results.findings(self.results):
            bad = verdict in ("fail", "error")
            terminalreporter.line(f"{verdict} {line}", red=bad, yellow=not bad)
        for name in results.surprises(self.results):
            terminalreporter.line(f"unexpected pass: {name}", yellow=True)
