"""The pytest side of the spec: its options, clauses on tests, verdicts, expectations.

Loaded by addopts of spec.ini, or of pyproject.toml in a clone (-p spec.plugin). Tests use from here:

- precondition(reason): this target cannot show the promise;
- record_evidence(request, title, text): something seen, or a function that looks when needed;
- judge_run(config, promise, problem): what holds for the run as a whole;
- describe(config, implementation=..., target=...): what is being tested, and where.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from spec import expectations
from spec.clauses import FOLDER, PageError, clauses
from spec.options import OPTIONS, add_options
from spec.recorder import About, Recorder, page_of
from spec.results import Evidence, Outcome, clean, excuse, one_line
from spec.shards import parse, share

PRECONDITION = "precondition: "
# A promise that was not kept, also where what was seen cannot be taken apart as what was promised.
FAILURES = (AssertionError, pytest.fail.Exception, LookupError, StopIteration, ValueError)
Text = str | list[str] | Callable[[], str]
_EVIDENCE = pytest.StashKey[list[tuple[str, Text]]]()
_ABOUT = pytest.StashKey[About]()
_WHOLE = pytest.StashKey[list[Outcome]]()
_EXPECTED = pytest.StashKey[expectations.Expectations]()


def precondition(reason: str) -> NoReturn:
    """End the test: its promise cannot be shown on this target, for this reason."""
    pytest.skip(PRECONDITION + reason)


def record_evidence(request: pytest.FixtureRequest, title: str, text: Text) -> None:
    """Attach something to the test's report.

    A function is called only if the test fails, and at once then, with its subhost still there:
    the place for logs, mounts and links. A list of lines may still grow while the test runs. Of
    several under one title the last one counts.
    """
    request.node.stash.setdefault(_EVIDENCE, []).append((title, text))


def judge_run(
    config: pytest.Config, promise: str, problem: str | None, verdict: str = "fail"
) -> None:
    """Say whether something holds for the run as a whole, once all tests are over; with a problem
    the verdict is fail, or error where nobody can know.

    For a fixture of the session: an assertion in one would count against the last test.
    """
    found: Outcome = {
        "id": promise,
        "promise": promise,
        "clauses": [],
        "verdict": verdict if problem else "pass",
        "seconds": 0,
        "reason": one_line(problem) if problem else None,
        "details": clean(problem) if problem else None,
        "evidence": [],
        "expected": None,
    }
    config.stash[_WHOLE].append(found)


def describe(
    config: pytest.Config, *, implementation: Mapping[str, str], target: Mapping[str, str]
) -> None:
    """Say what is tested (name, version, source) and where (name, system, kernel, machine).

    Call it before the first test: the name and version choose the file of expectations.
    """
    about = {"implementation": implementation, "target": target}
    config.stash[_ABOUT].update(
        {of: {key: clean(text) for key, text in said.items()} for of, said in about.items()}
    )
    config.stash[_EXPECTED] = expectations.known(
        implementation, config.getoption("--expectations")
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the spec."""
    group = parser.getgroup("spec", "the executable spec of overlay-boot(8)")
    add_options(group.addoption, *OPTIONS)


def pytest_configure(config: pytest.Config) -> None:
    """Start the books of this run; with xdist only the controller's are kept."""
    os.umask(0o022)  # tests make files for other users, whoever runs them
    config.addinivalue_line("markers", "clause(*ids): the promises of the man pages it checks")
    about = config.stash.setdefault(_ABOUT, {})
    whole = config.stash.setdefault(_WHOLE, [])
    try:
        config.stash[_EXPECTED] = expectations.known({}, config.getoption("--expectations"))
    except PageError as error:
        raise pytest.UsageError(str(error)) from None
    if not hasattr(config, "workerinput"):
        recorder = Recorder(config, about, whole)
        config.pluginmanager.register(recorder, "spec-recorder")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand on to xdist's controller what was tested, and where."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["spec"] = (
            session.config.stash[_ABOUT],
            session.config.stash[_WHOLE],
        )


def ids_of(node: pytest.Item) -> list[str]:
    """The clauses that a test names, in its own order."""
    return [str(name) for mark in node.iter_markers("clause") for name in mark.args]


def name_of(item: pytest.Item) -> str:
    """The test's id, relative to spec/."""
    return item.nodeid.removeprefix(f"{FOLDER.name}/")


def promised(item: pytest.Item, page: str) -> bool:
    """Whether a version of the page makes one of the test's promises; a test of none counts."""
    ids = ids_of(item)
    return not ids or any(page in clauses()[name].pages for name in ids)


def promise_of(item: pytest.Item) -> str:
    """The promise that a test checks: its docstring on one line."""
    return " ".join((getattr(item, "function", item).__doc__ or "").split())


def _ours(item: pytest.Item) -> bool:
    return FOLDER in item.path.parents or bool(ids_of(item))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Refuse a test that names an unknown clause, or does not state its promise."""
    test = metafunc.definition
    if unknown := [name for name in ids_of(test) if name not in clauses()]:
        raise pytest.Collector.CollectError(
            f"{test.nodeid}: no man page has the clause {', '.join(unknown)}"
        )
    if _ours(test) and not promise_of(test):
        raise pytest.Collector.CollectError(
            f"{test.nodeid}: no docstring: say which promise it checks"
        )


@pytest.hookimpl(trylast=True)  # shares are of what -k has picked
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of which no clause is in force, and those of other shards."""
    page = page_of(config)
    if (config.option.setuponly or config.option.setupplan) and any(map(_ours, items)):
        raise pytest.UsageError(
            "--setup-only and --setup-plan run no test: there is nothing to judge"
        )
    out = [item for item in items if not config.option.all and not promised(item, page)]
    if shard := config.option.shard:
        mine = share([name_of(item) for item in items if item not in out], *parse(shard))
        out += [item for item in items if item not in out and name_of(item) not in mine]
    if out:
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=out)


def _said(error: BaseException | None) -> str:
    """What an error says, if it can."""
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001
        return f"{type(error).__name__}, which cannot say more: {type(broken).__name__}"


def _verdict(report: pytest.TestReport, error: BaseException | None) -> str:
    if report.passed:
        return "pass"
    if report.skipped:
        return "precondition" if _said(error).startswith(PRECONDITION) else "skip"
    if isinstance(error, FAILURES) and (_asserts(error) or _in_test(error)):
        return "fail"
    return "error"


def _asserts(error: BaseException) -> bool:
    return isinstance(error, (AssertionError, pytest.fail.Exception))


def _in_test(error: BaseException) -> bool:
    """Whether it comes of a test's own lines, and not of what the spec does around them."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    ours = [file for file in files if FOLDER in file.parents or file.name.startswith("test_")]
    return bool(ours) and ours[-1].name.startswith("test_")


def _gather(item: pytest.Item, failed: bool) -> list[Evidence]:
    found: list[Evidence] = []
    for title, text in item.stash.get(_EVIDENCE, []):
        if callable(text):
            if not failed:
                continue
            try:
                text = text()
            except Exception as error:  # noqa: BLE001  # the failure itself matters more
                text = f"cannot be had: {error!r}"
        text = text if isinstance(text, str) else "\n".join(text)
        found.append({"title": title, "text": clean(text)})
    return found


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, Any, None]:
    """Add to the report what the spec knows: promise, verdict, evidence, expectation."""
    outcome = yield
    if not _ours(item):
        return
    report: pytest.TestReport = outcome.get_result()
    error = call.excinfo.value if call.excinfo else None
    verdict = _verdict(report, error)
    found: Outcome = {
        "id": name_of(item),
        "promise": promise_of(item),
        "clauses": ids_of(item),
        "verdict": verdict,
        "seconds": round(report.duration, 3),
        "reason": one_line(_said(error).removeprefix(PRECONDITION) or type(error).__name__)
        if error
        else None,
        "details": clean(report.longreprtext) if report.failed else None,
        "evidence": _gather(item, verdict in ("fail", "error")),
        "expected": None,
    }
    if isinstance(report.longrepr, tuple):  # of a skip
        file, line, why = report.longrepr
        report.longrepr = file, line, clean(why)
    elif report.longrepr and (text := report.longreprtext) != clean(text):
        report.longrepr = clean(text)  # xdist could not send it
    report.sections = [(title, clean(text)) for title, text in report.sections]
    found["expected"] = expected = excuse(found, item.config.stash[_EXPECTED])
    report.spec_about = item.config.stash[_ABOUT]  # type: ignore[attr-defined]
    report.spec = found  # type: ignore[attr-defined]  # xdist carries it to the controller
    if report.failed:
        for clause in (clauses()[name] for name in ids_of(item)):
            report.sections.append((f"promised: {clause.id}, {clause.place}", clause.sentence))
        report.sections += [(seen["title"], seen["text"]) for seen in found["evidence"]]
    page = page_of(item.config)
    if verdict == "fail" and not promised(item, page):
        expected = f"page {page} does not promise it"
    if expected and (verdict == "fail" or report.when == "call"):
        report.wasxfail = expected  # as pytest's own xfail does
        report.outcome = "skipped" if verdict == "fail" else "passed"


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Show preconditions apart from other skips."""
    if getattr(report, "spec", {}).get("verdict") == "precondition":
        return "precondition", "P", "PRECONDITION"
    return None
