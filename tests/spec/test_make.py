"""The Makefile and what it needs of a machine: each oddity ends in one line that says what to do."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from spec.clauses import parse
from tests.conftest import needs_root
from tests.mutants.__main__ import Fault

TOP = Path(__file__).parents[2]
MAKEFILE = (TOP / "Makefile").read_text()


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command's outcome, in this environment and what PATH there is here."""
    found = {"PATH": os.environ["PATH"], "HOME": str(cwd), **environment}
    return subprocess.run(
        words, cwd=cwd, env=found, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of a clone as the first steps of make need."""
    shutil.copytree(TOP / "tools", tmp_path / "tools")
    shutil.copy(TOP / "Makefile", tmp_path)
    return tmp_path


def fake(clone: Path, **programs: str) -> str:
    """A PATH on which these programs are shell scripts."""
    folder = clone / "fake"
    folder.mkdir()
    for name, script in programs.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_help_has_a_line_for_each_target(clone: Path) -> None:
    done = run("make", "help", cwd=clone)
    targets = re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE)[0].split()
    shown = re.findall(r"^  make (\S+) +\S", done.stdout, re.MULTILINE)
    assert sorted(shown) == sorted(set(targets) - {"test-setup", "vm-setup"})
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


def test_every_target_is_phony_or_a_file() -> None:
    targets = re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, re.MULTILINE)
    phony = re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE)[0].split()
    assert sorted(set(targets)) == sorted(phony)


def test_a_path_with_a_blank_is_refused(clone: Path) -> None:
    place = clone / "a b"
    place.mkdir()
    shutil.copy(clone / "Makefile", place)
    done = run("make", "help", cwd=place)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "has a blank" in done.stderr


def test_without_sudo_it_says_so(clone: Path) -> None:
    done = run("tools/setup", "packages", "gcc", cwd=clone, SUDO="no-such-sudo env X=1")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "run make as root, or install sudo" in done.stderr


@needs_root
@pytest.mark.parametrize(
    ("options", "says"), [("noexec", "programs cannot be run"), ("ro", "cannot be written")]
)
def test_a_folder_that_will_not_do_is_named(clone: Path, options: str, says: str) -> None:
    script = f"mount --bind . . && mount -o remount,bind,{options} . && cd . && tools/setup true"
    copy = f"cp -r tools /run/tools.$$; {script}".replace("tools/setup", "/run/tools.$$/setup")
    done = run(
        "unshare", "-m", "sh", "-c", f"{copy}; s=$?; rm -r /run/tools.$$; exit $s", cwd=clone
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done
    assert says in done.stderr and str(clone) in done.stderr


@needs_root
def test_a_tmp_that_runs_no_programs_is_not_used(clone: Path) -> None:
    script = "mount -t tmpfs -o noexec none /tmp && make -np help | grep ^TMPDIR"
    done = run("unshare", "-m", "sh", "-c", script, cwd=clone)
    assert done.stdout == "TMPDIR := /var/tmp\n", done


PLAN = """case "$*" in *assume-no*)
    echo "0 upgraded, 7 newly installed, 0 to remove and 0 not upgraded."
    echo "Need to get 12.5 MB/13.0 MB of archives."
    echo "After this operation, 40.1 MB of additional disk space will be used."
esac"""


def test_what_is_missing_is_said_before_it_is_installed(clone: Path) -> None:
    path = fake(clone, dpkg_query='[ "$4" != here ] || echo -n installed', apt_get=PLAN)
    done = run("tools/setup", "packages", "here", "gone", "lost", cwd=clone, PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "installing Debian packages: gone lost (7 with all that they need, 12.5 MB to download,"
        " 40.1 MB on the disk)\n"
    )
    assert run("tools/setup", "packages", "here", cwd=clone, PATH=path).stdout == ""


@pytest.mark.parametrize(
    ("apt_says", "words"),
    [
        ("W: Failed to fetch x  Temporary failure resolving 'm'\nE: Unable to locate", "network"),
        ("E: You don't have enough free space in /var/cache/apt/archives/.", "no room left"),
        ("Reading...\nE: Unable to locate package gone\nmore", "E: Unable to locate package gone"),
        ("E: Certificate verification failed: The certificate is NOT trusted.", "ca-certificates"),
        ("SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] x')\nnote: not pip's", "PIP_CERT"),
        ("  ERROR: No matching distribution\n  note: a subprocess", "failed: ERROR: No matching"),
        ("sudo: a password is required", "sudo: a password is required"),
        ("strange", "strange"),
    ],
)
def test_what_fails_is_one_line(clone: Path, apt_says: str, words: str) -> None:
    path = fake(clone, dpkg_query="exit 1", apt_get=f"cat << 'EOF'\n{apt_says}\nEOF\nexit 100")
    done = run("tools/setup", "packages", "gone", cwd=clone, PATH=path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert words in done.stderr and "build/setup.log" in done.stderr
    assert apt_says in (clone / "build/setup.log").read_text()


def test_pip_that_fails_is_one_line(clone: Path) -> None:
    script = "mkdir -p .venv/bin; cp fake/pip .venv/bin/; ln -sf /bin/true .venv/bin/python"
    path = fake(clone, python="exit 0", pip="echo 'ERROR: No matching distribution' >&2; exit 1")
    run("sh", "-c", script, cwd=clone)
    done = run("tools/setup", "venv", "python", cwd=clone, PATH=path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install failed: ERROR: No matching distribution" in done.stderr


def test_clean_removes_what_was_made(clone: Path) -> None:
    for name in (".venv/bin", "build/spec", "dist", ".cache/x", ".mypy_cache", "a.egg-info"):
        (clone / name).mkdir(parents=True)
    assert run("make", "clean", cwd=clone).returncode == 0
    assert sorted(path.name for path in clone.iterdir()) == ["Makefile", "tools"]


@needs_root
def test_collecting_needs_no_root() -> None:
    owner = TOP.stat().st_uid  # nobody else may read it
    other = ["setpriv", f"--reuid={owner}", "--clear-groups"] if owner else ["unshare", "-U"]
    done = run(*other, f"{TOP}/.venv/bin/python", "-m", "spec", "check", cwd=TOP)
    assert (done.returncode, done.stderr) == (0, "")


@needs_root
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "there is no overlay-boot here: run `make setup` in a clone"),
        (["--implementation=/nowhere"], "there is no command /nowhere/overlay-boot"),
        (["--target=ssh://root@127.0.0.1:9"], "ssh: connect to host"),
        (["--target=where"], "--target where: here, host, ssh"),
    ],
)
def test_a_run_that_cannot_begin_is_one_line(clone: Path, words: list[str], says: str) -> None:
    """Of pytest alone, in a clone in which nothing was set up, and of the spec's own command."""
    shutil.copytree(TOP / "spec", clone / "spec", ignore=shutil.ignore_patterns("__pyc*"))
    shutil.copy(TOP / "pyproject.toml", clone)
    (clone / "python").symlink_to(
        Path(sys.executable).resolve()
    )  # which has no commands beside it
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    for command in (["pytest", "spec"], ["spec", "run"]):
        whole = [str(clone / "python"), "-m", *command, *words, "-k", "share_is"]
        done = run(*whole, cwd=clone, **path)
        assert done.returncode == 4 and done.stderr.strip().count("\n") == 0, done
        assert done.stderr.startswith("ERROR: ") and says in done.stderr


def test_the_pages_name_targets_that_are_there() -> None:
    targets = re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, re.MULTILINE)
    for page in [TOP / "README.md", *(TOP / "docs").glob("*.md")]:
        named = re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(), re.MULTILINE)
        assert set(named) <= set(targets), page


def test_the_examples_for_contributors_are_right() -> None:
    """The mark is one, the fault has what a fault has, and a suite stands where it is said."""
    text = (TOP / "docs/contributing.md").read_text()
    (mark,) = re.findall(r"^    (\[#.*#)$", text, re.MULTILINE)
    (clause,) = parse(f"== FILES\n\n{mark}\n", "p")
    assert f'@clause("{clause.id}")' in text and f'clauses = ["{clause.id}"]' in text
    (block,) = re.findall(r"^    (\[\[fault\]\]\n(?:    .*\n)+)", text, re.MULTILINE)
    (row,) = tomllib.loads(block.replace("\n    ", "\n"))["fault"]
    edit = {key: row.pop(key) for key in ("file", "find", "replace")}
    assert Fault(edits=[edit], **row).clauses == [clause.id]
    assert "SUITES = {" in (TOP / "vm/recipe.py").read_text()
    for name in re.findall(r"`((?:vm|spec|tests|overlay_boot)/[\w./-]+)`", text):
        assert (TOP / name).exists(), name
