"""A run around which something breaks is never green, in no format, and accuses nobody."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spec import recorder, report, results, shards
from spec.__main__ import main
from spec.conftest import tree_of
from spec.leftovers import Difference
from spec.report_view import Run
from spec.targets import Here, Host
from tests.conftest import needs_root
from tests.spec.test_plugin import HEAD, TESTS, run

pytest_plugins = ["pytester"]
PASSES = """
@clause("netns-name")
def test_pass():
    "It passes."

@clause("netns-lo")
def test_too():
    "It passes, too."
"""
DIES = """
import os
def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput"):
        os.kill(os.getpid(), 9)
"""
ODD = """
class Mute(Exception):
    def __str__(self):
        raise RuntimeError

@clause("netns-name")
def test_surrogate():
    "It cannot be written as it is."
    print("\\udcff")
    assert False, "not UTF-8: \\udcff"

@clause("netns-lo")
def test_mute():
    "Its error says nothing."
    raise Mute

@clause("vlan")
def test_precondition():
    "It cannot be shown, for an odd reason."
    precondition("\\udcff")
"""


def all_say(data: Any, word: str) -> None:
    """See that each format tells of an error, with that word."""
    assert any(word in line for line in results.trouble(data)), results.trouble(data)
    assert 'errors="0"' not in report.junit(data)
    assert "\nnot ok" in report.tap(data)
    assert Run(data).tone == "bad"


def test_a_worker_that_dies_after_its_tests_is_an_error(pytester: pytest.Pytester) -> None:
    """With it went what it had to say of the run as a whole."""
    pytester.makeconftest(DIES)
    pytester.makepyfile(HEAD + PASSES)
    done = pytester.runpytest_subprocess("-p", "spec.plugin", "--results=r.json", "-n2")
    assert done.ret == 1
    all_say(json.loads((pytester.path / "r.json").read_text()), "died outside of a test")


@pytest.mark.parametrize("words", [(), ("-n2",), ("--continue-on-collection-errors",)])
def test_a_module_that_cannot_be_read_is_an_error(
    pytester: pytest.Pytester, words: tuple[str, ...]
) -> None:
    pytester.makepyfile(test_zz="import nowhere")
    done, data = run(pytester, PASSES, *words)
    assert done.ret != 0
    all_say(data, "test_zz.py")


def test_a_test_that_breaks_counts_whatever_page_is_in_force(pytester: pytest.Pytester) -> None:
    tests = PASSES.replace('"netns-lo"', '"cgroup"').replace(
        '    "It passes, too."', '    "It breaks."\n    raise OSError("no disk")'
    )
    done, data = run(pytester, tests, "--page=1.6", "--all")
    assert done.ret == 1
    all_say(data, "no disk")


@pytest.mark.parametrize("words", [(), ("-n2",)])
def test_whatever_an_error_says_the_run_goes_on(
    pytester: pytest.Pytester, words: tuple[str, ...]
) -> None:
    pytester.makepyfile(HEAD + ODD)
    pytester.runpytest_subprocess("-p", "spec.plugin", "--results=r.json", *words)
    data = json.loads((pytester.path / "r.json").read_text())
    found = {test["id"].rpartition("::")[2]: test["verdict"] for test in data["tests"]}
    assert found == {
        "test_surrogate": "fail",
        "test_mute": "error",
        "test_precondition": "precondition",
    }


def test_a_missing_shard_is_an_error(pytester: pytest.Pytester) -> None:
    parts: list[Any] = [run(pytester, PASSES, f"--shard={part}/3")[1] for part in (1, 2)]
    all_say(shards.merge(parts), "no results of shard 3 of 3")


@pytest.mark.parametrize("option", ["--setup-only", "--setup-plan"])
def test_a_run_without_tests_is_refused(pytester: pytest.Pytester, option: str) -> None:
    done, data = run(pytester, PASSES, option)
    assert (done.ret, data) == (pytest.ExitCode.USAGE_ERROR, {})


def test_what_was_left_out_is_said(pytester: pytest.Pytester) -> None:
    words = "--deselect=x::test_too", "--ignore=y", "--ignore-glob=z*"
    _, data = run(pytester, TESTS, *words)
    assert all(word.replace("=", " ") in data["selection"] for word in words), data["selection"]


def test_results_replace_nothing_but_files(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makepyfile(HEAD + PASSES)
    done = pytester.runpytest("-p", "spec.plugin", f"--results={tmp_path}")
    assert done.ret == pytest.ExitCode.USAGE_ERROR and tmp_path.is_dir()
    with pytest.raises(results.ResultsError, match="not a regular file"):
        results.regular(Path("/dev/null"))


def test_what_others_do_meanwhile_is_no_fault_of_the_subhosts() -> None:
    """Somebody logs in, a container is started, a unit gets its credentials."""
    others = (
        "mount /run/user/1000 tmpfs",
        "/sys/class/net/docker0",
        "process overlay-boot (pid 9)",
    )
    ours = ("/run/netns/s0x7", "/sys/class/net/s1x31", "mount /opt/subhost/s0x1/live overlay rw")
    for line in others:
        assert not Difference(frozenset({line}), frozenset()).mine, line
    for line in ours:
        assert Difference(frozenset({*others, line}), frozenset()).mine, line


def test_what_commands_need_stays_in_sight(tmp_path: Path) -> None:
    """In a sandbox that has folders of its own: all of a build, for a virtual environment also what
    it is in."""
    build = tmp_path / "build/usr/bin"
    assert tree_of(build) == tmp_path / "build/usr"
    assert tree_of(tmp_path / "scripts") == tmp_path / "scripts"
    assert tree_of(Path("/opt/bin")) == Path("/opt/bin")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/pyvenv.cfg").touch()
    assert tree_of(tmp_path / ".venv/bin") == tmp_path


@needs_root
def test_the_environment_of_a_run_is_not_the_implementations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Modules that only the spec finds are not lent to what it tests."""
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    sandbox = Here([])
    try:
        for target in (Host(), sandbox):
            said = target.succeed("env")
            assert "PYTHON" not in said and "\nHOME=" in f"\n{said}", said
    finally:
        sandbox.close()


def test_a_test_that_ends_its_process_leaves_no_results(pytester: pytest.Pytester) -> None:
    """Without workers nobody is left to tell; results of an earlier run do not stay."""
    (pytester.path / "r.json").write_text("old")
    pytester.makepyfile(
        HEAD + '@clause("stop")\ndef test_x():\n    "It ends."\n    import os; os._exit(0)'
    )
    command = [sys.executable, "-m", "pytest", "-p", "spec.plugin", "--results=r.json"]
    subprocess.run(command, cwd=pytester.path, check=False, capture_output=True)
    assert not (pytester.path / "r.json").exists()


def test_a_part_of_few_tests_may_be_empty(pytester: pytest.Pytester) -> None:
    """What -k has picked is shared out evenly, and a part that gets none of it is no failure."""
    parts = []
    for part in (1, 2, 3):
        done, data = run(
            pytester, PASSES + TESTS, f"--shard={part}/3", "-k", "test_pass or test_too"
        )
        assert done.ret == 0
        parts.append(data)
    assert sorted(len(part["tests"]) for part in parts) == [0, 1, 1]
    assert len(shards.merge(parts)["tests"]) == 2


def test_compare_tells_of_a_run_that_broke(pytester: pytest.Pytester) -> None:
    data: Any = run(pytester, PASSES)[1]
    broke = {**data, "tests": [*data["tests"], recorder.broken(recorder.WHOLE, "no disk")]}
    assert report.compare(data, data) == []
    said = report.compare(data, broke)
    assert [word for word, _ in said] == ["unknown"] and "no disk" in said[0][1]


def test_compare_goes_by_how_it_is_now(pytester: pytest.Pytester) -> None:
    """Also where the promise was not tested before."""
    whole: Any = run(pytester, PASSES)[1]
    part: Any = run(pytester, PASSES, "-k", "test_too")[1]
    assert [word for word, _ in report.compare(part, whole)] == ["better"]
    assert [word for word, _ in report.compare(whole, part)] == ["unknown"]


@pytest.mark.parametrize(
    "words",
    [
        *(["-n", "x"], ["-n", "-1"], ["-n", "0"]),
        *(["--patience", "0"], ["--patience", "nan"], ["--patience", "-1"], ["--patience", "inf"]),
        *(["--patience", "x"], ["--deb", ""]),
        *(["--shard", "1"], ["--shard", "x/y"], ["--shard", "2/1"]),
    ],
    ids=" ".join,
)
def test_a_mistake_in_an_option_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["spec", "run", *words])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        end.value.code == 2
        and words[0] in said
        and not re.search("invalid literal|_[a-z]+ value", said)
    ), said


def test_a_place_that_takes_no_results_is_told_before_anything_runs(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(HEAD + PASSES)
    done = pytester.runpytest("-p", "spec.plugin", "--results=/proc/r.json")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*/proc/r.json: the results cannot be written: *"])


def test_results_that_are_none_are_one_line(tmp_path: Path) -> None:
    for text in (
        "",
        "[]",
        '{"schema": 1}',
        "\udcff".encode(errors="surrogateescape").decode("latin-1"),
    ):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(results.ResultsError, match=r"^\S+r.json: .*[^\n]*$"):
            results.load(tmp_path / "r.json")
