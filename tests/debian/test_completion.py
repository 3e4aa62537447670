"""Completion for bash and zsh offers what the commands take."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BASH, ZSH = (ROOT / f"contrib/completion/overlay-boot.{shell}" for shell in ("bash", "zsh"))
COMMANDS = [
    f"overlay-{word}" for word in ("boot", "stop", "go", "list", "share", "diskfile", "diff")
]
ONE_LIST = "overlay-list() { printf 'NAME  PID\\nweb   7\\nmail  8\\n'; }"


def options_of(command: str) -> set[str]:
    """The long options that a command's help names."""
    path = ROOT / "bin" / command
    help_ = subprocess.run([sys.executable, path, "--help"], check=True, capture_output=True,
                           text=True, env={"PYTHONPATH": str(ROOT)}).stdout  # fmt: skip
    return set(re.findall(r"(?m)^  (--[a-z]+)", help_))


def complete(folder: Path, *words: str) -> set[str]:
    """What bash offers for the last word, where two subhosts run."""
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        f'source {BASH}; command() {{ "$@"; }}; {ONE_LIST}; compopt() {{ :; }};'
        f" COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1};"
        " _overlay_boot; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    shell = ["bash", "-c", script]
    done = subprocess.run(shell, cwd=folder, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a configuration, another file and a folder."""
    (tmp_path / "some.conf").touch()
    (tmp_path / "other").touch()
    (tmp_path / "sub").mkdir()
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_bash_offers_each_option(command: str, folder: Path) -> None:
    assert complete(folder, command, "--") == options_of(command)


def test_bash_offers_names_and_files(folder: Path) -> None:
    assert complete(folder, "overlay-boot", "") == {"some.conf", "sub/"}
    for command in ("overlay-stop", "overlay-go"):
        assert complete(folder, command, "") == {"web", "mail", "some.conf", "sub/"}
    assert complete(folder, "overlay-stop", "w") == {"web"}
    assert complete(folder, "overlay-share", "o") == {"other"}
    assert complete(folder, "overlay-share", "other", "m") == {"mail"}
    every = {"web", "mail", "some.conf", "sub/"}
    assert complete(folder, "overlay-diff", "") == every
    assert complete(folder, "overlay-diff", "--json", "") == every
    assert complete(folder, "overlay-diff", "web", "o") == {"other"}
    assert complete(folder, "overlay-diff", "--drop", "o") == {"other"}
    assert complete(folder, "overlay-diff", "--drop", "/x", "") == every


@pytest.mark.parametrize("command", COMMANDS)
def test_zsh_knows_each_option(command: str) -> None:
    text = ZSH.read_text()
    part = text[text.index(f"\n  {command})") :].partition(";;")[0]
    assert set(re.findall(r"(--[a-z]+)\[", part)) == options_of(command)
    assert command in text.splitlines()[0].split()


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_can_read_it() -> None:
    subprocess.run(["zsh", "-n", ZSH], check=True)
