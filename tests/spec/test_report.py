"""The verdict on a run, and its reports, on results made here."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from spec import report, results
from spec.__main__ import main
from spec.clauses import clauses, in_force
from spec.expectations import Expectations
from spec.report_markdown import conformance
from spec.results import Outcome, Results


def outcome(verdict: str, *ids: str, reason: str | None = None) -> Outcome:
    """A test with some evidence that HTML must not take for markup."""
    return {
        "id": f"test_x.py::test_{'_'.join(ids) or 'nothing'}_{verdict}",
        "promise": "It does <so>.",
        "clauses": list(ids),
        "verdict": verdict,
        "seconds": 0.25,
        "reason": reason,
        "details": None,
        "evidence": [{"title": "commands", "text": "# cat <<EOF & </pre><script>"}],
        "expected": None,
    }


def results_of(
    *tests: Outcome, page: str = "ours", known: dict[str, str] | None = None
) -> Results:
    """The results of a run of these tests."""
    known = known or {}
    for test in tests:
        if test["verdict"] == "fail":
            test["expected"] = next(
                (known[name] for name in test["clauses"] if name in known), None
            )
    return {
        "schema": 1,
        "page": page,
        "implementation": {"name": "toy", "version": "1.0"},
        "target": {"name": "here", "system": "Debian 12", "kernel": "6.1"},
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 9,
        "selection": None,
        "clauses": results.judge(list(tests), page, Expectations(known)),
        "tests": list(tests),
    }


def verdict_of(found: Results, name: str) -> str:
    """The verdict on one clause."""
    return next(clause["verdict"] for clause in found["clauses"] if clause["id"] == name)


def everything(page: str = "ours") -> list[Outcome]:
    """A passing test for each clause in force."""
    return [outcome("pass", name) for name in in_force(page)]


@pytest.mark.parametrize(
    ("verdicts", "together"),
    [
        (("pass", "pass"), "pass"),
        (("pass", "fail"), "fail"),
        (("fail", "error"), "error"),
        (("pass", "precondition"), "precondition"),
        (("skip", "precondition"), "precondition"),
        ((), "untested"),
    ],
)
def test_a_clause_is_as_good_as_its_worst_test(verdicts: tuple[str, ...], together: str) -> None:
    found = results_of(*(outcome(verdict, "netns-lo") for verdict in verdicts))
    assert verdict_of(found, "netns-lo") == together


@pytest.mark.parametrize("page", ["1.2", "1.6", "ours"])
def test_all_passed_is_a_success(page: str) -> None:
    assert results.trouble(results_of(*everything(page), page=page)) == []


def test_what_keeps_a_run_from_success() -> None:
    tests = [test for test in everything() if test["clauses"][0] not in ("vlan", "stop", "upper")]
    found = results_of(
        *tests,
        outcome("precondition", "vlan", reason="no 8021q"),
        outcome("fail", "stop", reason="it runs on"),
        outcome("error", reason="left over"),
    )
    lines = [
        "error test_x.py::test_nothing_error: left over",
        "fail stop: it runs on",
        "precondition vlan: no 8021q",
        "untested upper: no test ran",
    ]
    assert results.trouble(found) == lines
    del lines[2]
    assert results.trouble(found, allow_preconditions=True) == lines


def test_a_known_failure_is_none_and_its_pass_is_news() -> None:
    tests = [test for test in everything() if test["clauses"] != ["stop"]]
    found = results_of(*tests, outcome("fail", "stop"), known={"stop": "slow", "upper": "old"})
    assert results.trouble(found) == []
    assert results.surprises(found) == ["upper"]
    assert results.count(found["clauses"])["expected"] == 1


def test_results_are_judged_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what was learnt of their failures since the run, and without it again."""
    file, expected, none = tmp_path / "r.json", tmp_path / "toy.toml", tmp_path / "none.toml"
    tests = [test for test in everything() if test["clauses"] != ["stop"]]
    failed = outcome("fail", "stop", reason="it runs on") | {"details": "E it runs on"}
    results.save(results_of(*tests, failed), file)
    entry = '[[expect]]\nclause = "{}"\nmatch = "runs on"\nreason = "slow"\n'
    expected.write_text(entry.format("stop") + entry.format("upper"))
    none.write_text("expect = []\n")
    for known, status, line in (
        (expected, 0, "unexpected pass: upper"),
        (none, 1, "fail stop: it runs on"),
    ):
        words = ["spec", "judge", str(file), "--expectations", str(known)]
        monkeypatch.setattr("sys.argv", words)
        assert main() == status
        assert capsys.readouterr().out.splitlines()[-1] == line
        assert results.count(results.load(file)["clauses"]).get("expected", 0) == 1 - status


def test_a_clause_not_in_force_does_not_count() -> None:
    found = results_of(*everything("1.2"), outcome("fail", "boot-race"), page="1.2")
    assert results.trouble(found) == []


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    found = results_of(outcome("pass", "stop"))
    results.save(found, tmp_path / "new" / "r.json")
    assert results.load(tmp_path / "new" / "r.json") == found
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["r.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}'])
def test_other_files_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(results.ResultsError, match=r"^.*r\.json: .*$"):
        results.load(file)


def test_text_is_made_fit_for_reports() -> None:
    dirty = b"\x1b[31mred\x1b[0m\r\n\tand\x00 \xff".decode(errors="surrogateescape")
    assert results.clean(dirty) == "red\n\tand\ufffd \ufffd"
    much = results.clean("a" * results.LIMIT + "end")
    assert much.startswith("[3 characters left out]\naaa") and much.endswith("aend")


def test_tap_and_junit_tell_each_clause_in_force() -> None:
    found = results_of(
        outcome("pass", "stop"),
        outcome("fail", "upper", reason="lost"),
        outcome("fail", "lower", reason="was known"),
        outcome("precondition", "vlan", reason="no 8021q"),
        known={"lower": "always so"},
    )
    lines = report.tap(found).splitlines()
    force = list(in_force("ours"))
    assert lines[:2] == ["TAP version 13", f"1..{len(force)}"]
    assert f"ok {force.index('stop') + 1} - stop" in lines
    assert f"not ok {force.index('upper') + 1} - upper" in lines
    assert "# lost" in lines
    assert f"not ok {force.index('lower') + 1} - lower # TODO always so" in lines
    assert f"ok {force.index('vlan') + 1} - vlan # SKIP precondition: no 8021q" in lines
    suite = ElementTree.fromstring(report.junit(found))
    assert (suite.get("tests"), suite.get("failures")) == (str(len(force)), "1")
    case = next(case for case in suite if case.get("name") == "upper")
    assert (case.get("classname"), case.get("time")) == ("overlay-boot.8.VARIABLES", "0.25")
    assert case[0].tag == "failure" and case[0].text == "lost"


def test_tap_and_junit_tell_what_broke_for_the_run_as_a_whole() -> None:
    found = results_of(*everything(), outcome("fail", reason="left behind: x0"))
    assert report.tap(found).endswith("# left behind: x0\n")
    suite = ElementTree.fromstring(report.junit(found))
    assert (suite.get("failures"), suite[-1].get("classname")) == ("1", "run")
    assert suite[-1][0].text == "left behind: x0"


def test_tap_and_junit_are_well_formed_whatever_a_failure_says() -> None:
    nasty = "ok 1\nBail out!\r\n1..0 # SKIP \\# \x00\x0b\x85\u2028\ufffe\uffff\ud800 ]]> <&\"'"
    tests = [
        outcome("fail", "stop", reason=nasty),
        outcome("precondition", "vlan", reason=nasty),
        outcome("fail", "upper", reason="x"),
        outcome("error", reason=nasty),
    ]
    found = results_of(*tests, known={"upper": nasty})
    found["implementation"] = {"name": nasty, "version": nasty}
    suite = ElementTree.fromstring(report.junit(found).encode())
    assert int(suite.get("tests", "0")) == len(suite)
    lines = report.tap(found).split("\n")
    assert len([line for line in lines if re.match(r"(not )?ok \d+ - ", line)]) == len(suite)
    assert lines[1] == f"1..{len(suite)}" and lines.pop() == ""
    rest = [line for line in lines[2:] if not re.match(r"(not )?ok \d+ - |# ", line)]
    assert rest == [] and len(report.tap(found).splitlines()) == len(lines)
    for line in lines[2:]:
        assert not line.startswith(("ok", "not")) or len(re.findall(r"(?<!\\)# ", line)) <= 1


def test_compare_tells_better_from_worse_on_any_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a clause that the page in force does not promise, and one test of several."""
    before = results_of(
        outcome("pass", "boot-race"), outcome("fail", "stop"), outcome("pass", "upper"), page="1.6"
    )
    after = results_of(
        outcome("fail", "boot-race"),
        outcome("pass", "stop"),
        outcome("error", "upper"),
        page="1.6",
    )
    rows = [(word, line.partition(": ")[0]) for word, line in report.compare(before, after)]
    assert rows[:3] == [("worse", "boot-race"), ("unknown", "upper"), ("better", "stop")]
    assert report.compare(before, before) == []
    several = [{**outcome("fail", "stop"), "id": f"test_x.py::{name}"} for name in "ab"]
    fewer = [several[0], {**several[1], "verdict": "pass"}]
    rows = report.compare(results_of(*several), results_of(*fewer))  # type: ignore[arg-type]
    assert [(word, line.partition(": ")[0]) for word, line in rows] == [("better", "test_x.py::b")]
    files = [str(tmp_path / name) for name in ("a", "b")]
    for status, pair in ((1, (before, after)), (0, (before, before))):
        for file, run in zip(files, pair, strict=True):
            results.save(run, Path(file))
        monkeypatch.setattr("sys.argv", ["spec", "compare", *files])
        assert main() == status
    assert "worse   boot-race: pass -> fail" in capsys.readouterr().out


def test_conformance_has_a_row_for_each_clause() -> None:
    text = conformance(
        [
            results_of(*everything()),
            results_of(outcome("fail", "stop", reason="a|b <c>"), page="1.6"),
        ]
    )
    assert len(re.findall(r"^\| `[a-z0-9-]+` \|", text, re.MULTILINE)) == len(clauses())
    assert "| A | toy 1.0 | Debian 12, 6.1, here | ours | 2026-01-02 |" in text
    row = next(line for line in text.splitlines() if line.startswith("| `stop` |"))
    assert row.endswith("| ✓ | ✗ fail |")
    assert "- `stop` B, fail: a\\|b \\<c>" in text


def test_a_missing_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["spec", "report", str(tmp_path / "none")])
    assert main() == 2
    assert capsys.readouterr().err.count("\n") == 1
