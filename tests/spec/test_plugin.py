"""Verdicts, expectations and exit statuses, by running pytest on small suites of tests."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from spec import results, shards
from spec.clauses import FOLDER

pytest_plugins = ["pytester"]
SCHEMA = json.loads((FOLDER / "results.schema.json").read_text())
HEAD = """
import pytest
from spec.clauses import clause
from spec.plugin import describe, precondition, record_evidence

@pytest.fixture(autouse=True, scope="session")
def about(request):
    describe(request.config, implementation={"name": "toy", "version": "1"}, target={"name": "x"})
"""
TESTS = """
@clause("netns-name")
def test_pass(request):
    "It passes."
    record_evidence(request, "never", lambda: 1 / 0)
    commands = ["# ip link"]
    record_evidence(request, "commands", commands)
    commands.append("# ip netns")

@clause("netns-lo", "cables")
def test_fail(request):
    "It fails."
    record_evidence(request, "commands", "# ip link")
    record_evidence(request, "log", lambda: "the log")
    record_evidence(request, "broken", lambda: 1 / 0)
    assert 1 == 2, "wanted two"

@clause("vlan")
def test_no_vlan():
    "It cannot be shown."
    precondition("no 8021q")

@clause("upper")
def test_skip():
    "It is skipped."
    pytest.skip("not now")

@clause("lower")
def test_error():
    "It breaks."
    raise OSError("no disk")

@pytest.fixture
def left_over():
    yield
    assert False, "left over: /run/netns/x"

@clause("stop")
def test_teardown(left_over):
    "It leaves something behind."

@clause("log-default-1-6")
def test_other_page():
    "It is promised by another version."
"""


def run(
    pytester: pytest.Pytester, tests: str, *words: str
) -> tuple[pytest.RunResult, dict[str, Any]]:
    """Run tests with the plugin; what pytest said, and results.json."""
    pytester.makepyfile(HEAD + tests)
    done = pytester.runpytest("-p", "spec.plugin", "--results=r.json", *words)
    file = pytester.path / "r.json"
    data = json.loads(file.read_text()) if file.exists() else {}
    if data:
        jsonschema.validate(data, SCHEMA)
    return done, data


def verdicts(data: dict[str, Any]) -> dict[str, str]:
    """The verdicts of the clauses that have tests."""
    return {clause["id"]: clause["verdict"] for clause in data["clauses"] if clause["tests"]}


ALL = {
    "netns-name": "pass",
    "netns-lo": "fail",
    "cables": "fail",
    "vlan": "precondition",
    "upper": "skip",
    "lower": "error",
    "stop": "fail",
}


def test_each_kind_of_outcome_has_its_verdict(pytester: pytest.Pytester) -> None:
    done, data = run(pytester, TESTS)
    assert done.ret == 1
    assert verdicts(data) == ALL
    tests = {test["id"].partition("::")[2]: test for test in data["tests"]}
    fail = tests["test_fail"]
    assert (fail["promise"], fail["reason"]) == ("It fails.", "wanted two assert 1 == 2")
    assert fail["evidence"] == [
        {"title": "commands", "text": "# ip link"},
        {"title": "log", "text": "the log"},
        {"title": "broken", "text": "cannot be had: ZeroDivisionError('division by zero')"},
    ]
    assert tests["test_pass"]["evidence"] == [
        {"title": "commands", "text": "# ip link\n# ip netns"}
    ]
    assert tests["test_no_vlan"]["reason"] == "no 8021q"
    assert tests["test_error"]["reason"] == "no disk"
    assert tests["test_teardown"]["reason"] == "left over: /run/netns/x assert False"
    assert (data["implementation"], data["page"]) == ({"name": "toy", "version": "1"}, "ours")


def test_a_failure_shows_sentence_and_evidence(pytester: pytest.Pytester) -> None:
    done, _ = run(pytester, TESTS)
    done.stdout.fnmatch_lines(
        [
            "*promised: netns-lo, overlay-boot.8, NETWORKING*",
            "The loopback interface in it is up.",
            "*commands*",
            "# ip link",
            "*overlay-boot.8 NETWORKING * 1 * 1 *",
            "fail cables, netns-lo: wanted two assert 1 == 2",
            "precondition vlan: no 8021q",
        ]
    )


def test_workers_of_xdist_report_the_same(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(HEAD + TESTS)
    file = pytester.path / "toy.toml"
    file.write_text('[[expect]]\nclause = "netns-name"\nmatch = "."\nreason = "x"\n')
    words = "--results=r.json", f"--expectations={file}", "-n2"
    done = pytester.runpytest_subprocess("-p", "spec.plugin", *words)
    data = json.loads((pytester.path / "r.json").read_text())
    assert done.ret == 1
    assert verdicts(data) == ALL
    assert data["implementation"]["name"] == "toy"
    assert results.surprises(data) == ["netns-name"]
    at_once, _, _ = done.stdout.str().partition("= FAILURES =")
    name = "test_workers_of_xdist_report_the_same.py::test_"
    assert f"\nfail {name}fail: wanted two" in at_once
    assert f"\nerror {name}error: no disk\n" in at_once


WHOLE = """
from spec.plugin import judge_run

@pytest.fixture(autouse=True, scope="session")
def all_gone(request):
    yield
    judge_run(request.config, "All is gone.", "it shows:\\nx0")

@clause("stop")
def test_stop():
    "It stops."
"""


@pytest.mark.parametrize("words", [(), ("-n2",)])
def test_the_whole_run_can_fail(pytester: pytest.Pytester, words: tuple[str, ...]) -> None:
    pytester.makepyfile(HEAD + WHOLE)
    done = pytester.runpytest_subprocess("-p", "spec.plugin", "--results=r.json", *words)
    data = json.loads((pytester.path / "r.json").read_text())
    assert (done.ret, verdicts(data)) == (1, {"stop": "pass"})
    assert [test["reason"] for test in data["tests"]] == ["it shows: x0", None]
    done.stdout.fnmatch_lines(["fail All is gone.: it shows: x0"])


def test_the_page_in_force_selects(pytester: pytest.Pytester) -> None:
    done, data = run(pytester, TESTS, "--page=1.6", "-k", "other or pass")
    assert done.ret == 0
    assert verdicts(data) == {"netns-name": "pass", "log-default-1-6": "pass"}
    assert data["selection"].startswith("-k other or pass")


EXPECTED = """
[[expect]]
clause = "netns-lo"
match = "wanted (one|two)"
reason = "known"

[[expect]]
clause = "netns-name"
match = "never"
reason = "was so once"

[[expect]]
test = "{}::test_teardown"
match = "left over"
reason = "leaves it"
"""


def test_known_failures_do_not_fail_the_run(pytester: pytest.Pytester) -> None:
    file = Path(pytester.path) / "toy.toml"
    file.write_text(EXPECTED.format("test_known_failures_do_not_fail_the_run.py"))
    chosen = "-k", "test_pass or test_fail or test_teardown"
    done, data = run(pytester, TESTS, f"--expectations={file}", *chosen)
    assert done.ret == 0, done.stdout.str()
    found = {clause["id"]: clause for clause in data["clauses"] if clause["tests"]}
    assert (found["netns-lo"]["verdict"], found["netns-lo"]["expected"]) == ("fail", "known")
    assert found["stop"]["expected"] == "leaves it"
    assert found["netns-name"]["surprise"]
    done.stdout.fnmatch_lines(["unexpected pass: netns-name"])


def test_a_failure_of_another_kind_was_not_expected(pytester: pytest.Pytester) -> None:
    file = Path(pytester.path) / "toy.toml"
    file.write_text('[[expect]]\nclause = "netns-lo"\nmatch = "wanted one"\nreason = "x"\n')
    done, data = run(pytester, TESTS, f"--expectations={file}", "-k", "test_fail")
    assert done.ret == 1
    assert data["tests"][0]["expected"] is None


def test_an_expectation_excuses_no_error(pytester: pytest.Pytester) -> None:
    file = Path(pytester.path) / "toy.toml"
    file.write_text('[[expect]]\nclause = "lower"\nmatch = "."\nreason = "x"\n')
    done, _ = run(pytester, TESTS, f"--expectations={file}", "-k", "test_error")
    assert done.ret == 1


@pytest.mark.parametrize(("option", "status"), [((), 1), (("--allow-preconditions",), 0)])
def test_preconditions_are_no_success(
    pytester: pytest.Pytester, option: tuple[str, ...], status: int
) -> None:
    done, _ = run(pytester, TESTS, *option, "-k", "test_no_vlan or test_pass")
    assert done.ret == status
    done.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("test", "complaint"),
    [
        ('@clause("netns-nam")\ndef test_it():\n "x"\n', "*no man page has the clause netns-nam"),
        ('@clause("netns-name")\ndef test_it(): pass\n', "*no docstring: say which promise*"),
    ],
)
def test_a_test_that_promises_nothing_known_is_not_collected(
    pytester: pytest.Pytester, test: str, complaint: str
) -> None:
    done, _ = run(pytester, test)
    assert done.ret == pytest.ExitCode.INTERRUPTED
    done.stdout.fnmatch_lines([complaint])


DYING = """
import os, signal

@clause("netns-name")
def test_before():
    "It passes."

@clause("stop")
def test_dies():
    "It dies."
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_dies_is_an_error_of_its_test(pytester: pytest.Pytester) -> None:
    """Not the pass of its set-up, also for whoever judges the results later."""
    pytester.makepyfile(HEAD + DYING)
    words = "--results=r.json", "-n1"
    done = pytester.runpytest_subprocess("-p", "spec.plugin", *words)
    data = json.loads((pytester.path / "r.json").read_text())
    assert done.ret == 1
    assert verdicts(data) == {"netns-name": "pass", "stop": "error"}
    lines = results.trouble(data)
    assert len(lines) == 1 and "worker 'gw0' crashed" in lines[0], lines
    assert data["implementation"]["name"] == "toy"


ENDING = """
@clause("netns-name")
def test_ends():
    "It ends the run."
    pytest.exit("enough", 0)

@clause("stop")
def test_never():
    "It does not come to this."
"""


def test_a_run_that_ends_early_is_an_error(pytester: pytest.Pytester) -> None:
    """Also where it ends with status 0; and results of an earlier run do not stay."""
    (pytester.path / "r.json").write_text("old")
    done, data = run(pytester, ENDING)
    assert done.ret != 0
    assert verdicts(data) == {"netns-name": "error"}
    broken = [test for test in data["tests"] if not test["clauses"]]
    assert [(test["id"], test["verdict"]) for test in broken] == [
        ("A run comes to its end.", "error")
    ]
    assert "error" in " ".join(results.trouble(data))


HARNESS = """
@clause("netns-name")
def test_own():
    "A line of its own has the error."
    assert {}["gone"]

@clause("stop")
def test_around():
    "The harness has the error."
    from spec.results import worst
    worst(["no such verdict"])
"""


def test_an_error_of_the_spec_itself_is_no_failure(pytester: pytest.Pytester) -> None:
    _, data = run(pytester, HARNESS)
    assert verdicts(data) == {"netns-name": "fail", "stop": "error"}


def test_results_are_written_whatever_the_locale(pytester: pytest.Pytester) -> None:
    """An encoding of the locale's is used for nothing: Python warns of each place, as an error."""
    tests = TESTS.replace("It fails.", "It fails: \u2713.")
    pytester.makepyfile(HEAD + tests)
    environ = dict(os.environ, PYTHONWARNDEFAULTENCODING="1", PYTHONIOENCODING="latin-1")
    environ |= {"PYTHONPATH": str(FOLDER.parent), "PYTHONUTF8": "0", "LC_ALL": "en_US.ISO-8859-1"}
    words = "-m", "pytest", "-p", "spec.plugin", "--results=r.json", "-p", "no:cacheprovider"
    done = subprocess.run(
        [sys.executable, *words], cwd=pytester.path, env=environ, capture_output=True, check=False
    )
    text = (done.stdout + done.stderr).decode("latin-1")
    assert done.returncode == 1 and "INTERNALERROR" not in text, text
    assert not re.search(r"spec/\w+\.py:\d+: EncodingWarning", text), text
    assert "\u2713" in (pytester.path / "r.json").read_text(encoding="utf-8")
    for words in (("report",), ("report", "--tap", "t", "--junit", "x"), ("judge",)):
        command = [sys.executable, "-W", "error::EncodingWarning", "-m", "spec", words[0]]
        command += ["r.json", *words[1:]]
        done = subprocess.run(
            command, cwd=pytester.path, env=environ, capture_output=True, check=False
        )
        assert done.returncode == (words[0] == "judge") and not done.stderr, done


def test_all_runs_what_the_page_does_not_promise_without_holding_it_to_that(
    pytester: pytest.Pytester,
) -> None:
    tests = TESTS.replace('"netns-lo", "cables"', '"boot-race"')
    done, data = run(pytester, tests, "--page=1.6", "--all", "-k", "test_fail or test_pass")
    assert done.ret == 0, done.stdout.str()
    assert verdicts(data) == {"netns-name": "pass", "boot-race": "fail"}
    done.assert_outcomes(passed=1, xfailed=1)
    done, _ = run(pytester, tests, "--page=ours", "--all", "-k", "test_fail or test_pass")
    assert done.ret == 1


def test_shards_are_the_whole_once_merged(pytester: pytest.Pytester) -> None:
    parts = [run(pytester, TESTS, f"--shard={number}/3")[1] for number in (1, 2, 3)]
    assert [part["selection"] is not None for part in parts] == [True] * 3
    for part in parts:  # the test's own folder is no whole run of the spec
        part["selection"] = re.search(r"shard ./3", part["selection"])[0]  # type: ignore[index]
    ids = [test["id"] for part in parts for test in part["tests"]]
    assert len(ids) == len({*ids}) == 6
    whole = shards.merge(parts)  # type: ignore[arg-type]
    assert (verdicts(whole), whole["selection"]) == (ALL, None)  # type: ignore[arg-type]
    assert shards.merge(parts[:2])["selection"] == "without shard 3 of 3"  # type: ignore[arg-type]
    for wrong in (
        [parts[0], parts[0]],
        [parts[0], {**parts[1], "page": "1.6"}],
        [parts[0], {**parts[1], "implementation": {}}],
        [parts[0], {**parts[1], "selection": "shard 2/4"}],
        [parts[0], {**parts[1], "selection": None}],
    ):
        with pytest.raises(results.ResultsError, match="not parts of one run"):
            shards.merge(wrong)  # type: ignore[arg-type]


def test_shards_take_about_as_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seconds = {f"t{number}": float(number) for number in range(1, 21)}
    monkeypatch.setattr(shards, "DURATIONS", tmp_path / "durations")
    shards.DURATIONS.write_text(json.dumps(seconds))
    names = [*seconds, "new"]
    parts = [shards.share(names, number, 4) for number in (1, 2, 3, 4)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    loads = [sum(seconds.get(name, shards.OTHERS) for name in part) for part in parts]
    assert max(loads) - min(loads) <= 5
    for wrong in ("0/3", "4/3", "x", "1"):
        with pytest.raises(ValueError):
            shards.parse(wrong)
