"""The words of the commands: mistakes on the command line, help, hook programs by hand."""

import os
import subprocess

import pytest

from overlay_boot import diff, systemd
from overlay_boot.cli import COMMANDS

from .conftest import BIN, Subhost, run


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["overlay-boot"], 2, "expected exactly one configuration file: see overlay-boot --help"),
        (["overlay-boot", "--nonsense", "x"], 2, "unknown option --nonsense"),
        (["overlay-boot", "--wait", "--check", "x"], 2, "exclude each other"),
        (["overlay-boot", "/no/such.conf"], 2, "cannot read the configuration: No such file"),
        (["overlay-stop", "--timeout", "x", "y"], 2, "--timeout takes seconds, not 'x'"),
        (["overlay-stop", "--timeout=nan", "y"], 2, "--timeout takes seconds, not 'nan'"),
        (["overlay-stop", "no-such"], 3, "no-such is not running"),
        (["overlay-go", "no-such"], 3, "no-such is not running"),
        (["overlay-go", "--nonsense"], 2, "unknown option --nonsense"),
        (["overlay-list", "x"], 2, "expected no argument, not 'x'"),
        (["overlay-diff"], 2, "expected a name or configuration file of a subhost"),
        (["overlay-diff", "x", "--drop"], 2, "--drop takes a path in the subhost"),
        (["overlay-diff", "no-such"], 3, "for one that is stopped give its configuration file"),
        (["overlay-share", "x"], 2, "expected a path, and the name or configuration file"),
        (["overlay-diskfile"], 2, "expected a path, and at most a disk image"),
        (["overlay-premount"], 2, "expected UPPER"),
        (["overlay-premount", "/"], 1, "NAME is not set: only overlay-boot runs this"),
        (["overlay-postmount", "/"], 2, "expected LIVE and UPPER"),
        (["overlay-init"], 1, "START is not set: only overlay-boot runs this"),
        (["overlay-init-systemd"], 1, "NAME is not set: only overlay-boot runs this"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], status: int, said: str) -> None:
    done = run(*arguments)
    assert done.returncode == status and said in done.stderr and done.stdout == ""
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", sorted(path.name for path in BIN.glob("overlay-*")))
def test_help(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"Usage: {command}")
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("start", "script"),
    [
        ("none", "exec /.reaper --or-dummy\n"),
        ("one /two", "/.reaper --start 'one' '/two'\nexec /.reaper --or-dummy\n"),
        ("it's", "/.reaper --start 'it'\\''s'\nexec /.reaper --or-dummy\n"),
    ],
)
def test_overlay_init_prints_the_script(start: str, script: str) -> None:
    done = run("overlay-init", env={**os.environ, "START": start})
    assert (done.returncode, done.stdout) == (0, script)


def test_what_cannot_be_printed_is_told() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [BIN / "overlay-boot", "--help"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1 and b"No space left on device" in done.stderr


def test_a_missing_bridge_is_one_line(subhost: Subhost) -> None:
    conf = subhost.write("CABLES= nosuch=\n")
    done = run("overlay-boot", conf)
    assert done.returncode == 2 and done.stderr.partition(": ")[2] == (
        "CABLES: nosuch is not there: create it with ip link add nosuch type bridge, "
        "or correct CABLES\n"
    )


@pytest.mark.parametrize("kind", ["bridge", "veth"])
def test_the_advice_on_a_taken_name_is_to_delete_only_cables(subhost: Subhost, kind: str) -> None:
    name = f"{subhost.name}0"
    subprocess.run(["ip", "link", "add", name, "type", kind], check=True)
    try:
        done = run("overlay-boot", subhost.write("CABLES= =\n"))
    finally:
        subprocess.run(["ip", "link", "delete", name], check=True)
    assert done.returncode == 1 and "choose another NAME" in done.stderr, done
    assert ("ip link delete" in done.stderr) == (kind == "veth")


def test_a_bridges_name_need_not_be_utf_8(subhost: Subhost) -> None:
    """It is just not there, in one line; the same goes for what a file is called."""
    done = run(
        "overlay-boot", subhost.write("CABLES=!printf '\\377='\n"), errors="surrogateescape"
    )
    assert done.returncode == 2 and r"\xff is not there" in done.stderr, done
    assert done.stderr.count("\n") == 1
    odd = os.fsencode(subhost.folder) + b"/\xff.conf"
    os.link(subhost.conf, odd)
    done = run("overlay-boot", os.fsdecode(odd), errors="surrogateescape")
    assert done.returncode == 2 and "NAME" in done.stderr and done.stderr.count("\n") == 1, done


USAGES = {name: usage for name, (_, usage) in COMMANDS.items()} | {
    "overlay-diff": diff.USAGE,
    "overlay-init-systemd": systemd.USAGE,
}


@pytest.mark.parametrize("name", USAGES)
def test_help_fits_a_terminal(name: str) -> None:
    """Of 80 columns."""
    usage = USAGES[name]
    assert usage.startswith(f"Usage: {name}") and max(map(len, usage.split("\n"))) < 80
