"""What is tested, and what a run leaves behind, on a sandbox of this machine."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from spec import leftovers, waiting
from spec.installed import install
from spec.targets import Here, Host, TargetError
from tests.conftest import needs_root

pytestmark = needs_root
SCRIPT = "#!/bin/sh\necho package\n"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Here]:
    """A sandbox, measured."""
    made = Here([tmp_path])
    waiting.learn(made)
    yield made
    made.close()


def package(folder: Path, commands: tuple[str, ...] = ("overlay-boot", "overlay-go")) -> Path:
    """A package with commands as Debian's has them: links from /usr/sbin."""
    root = folder / "package of ours"
    for place in ("DEBIAN", "usr/sbin", "var/lib/overlay-boot"):
        (root / place).mkdir(parents=True)
    lines = ["Package: overlay-boot", "Version: 1.6.9-1", "Architecture: all"]
    lines += ["Maintainer: x <x@y>", "Description: x"]
    (root / "DEBIAN/control").write_text("\n".join(lines) + "\n")
    for name in commands:
        (root / "var/lib/overlay-boot" / name).write_text(SCRIPT)
        (root / "var/lib/overlay-boot" / name).chmod(0o755)
        (root / "usr/sbin" / name).symlink_to(f"/var/lib/overlay-boot/{name}")
    deb = folder / "a build.deb"
    subprocess.run(["dpkg-deb", "--build", root, deb], check=True, capture_output=True)
    return deb


def test_a_package_is_what_is_tested(target: Here, tmp_path: Path) -> None:
    deb = package(tmp_path)
    about = install(target, None, deb)
    commands = about.pop("commands").splitlines()
    assert about == {
        "name": "debian",
        "version": "1.6.9-1",
        "source": "a build.deb",
        "package": "overlay-boot 1.6.9-1",
        "sha256": hashlib.sha256(deb.read_bytes()).hexdigest(),
    }
    digest = hashlib.sha256(SCRIPT.encode()).hexdigest()
    assert [line.split()[0] for line in commands] == [digest] * 2
    assert target.run("overlay-boot").out == "package\n"


def test_a_package_that_is_not_what_runs_is_an_error(target: Here, tmp_path: Path) -> None:
    """Another command on PATH is not credited to it, and one of its own is not missing."""
    target.put("/opt/other/overlay-share", "#!/bin/sh\n", 0o755)
    target.path += ":/opt/other"
    with pytest.raises(TargetError, match=r"overlay-share there is /opt/other/overlay-share, not"):
        install(target, None, package(tmp_path))


def test_a_package_hidden_by_another_is_an_error(
    target: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a target that installs has the commands of something else first on PATH."""
    target.put("/opt/other/overlay-boot", "#!/bin/sh\n", 0o755)
    argv = target.argv
    monkeypatch.setattr(
        target, "argv", lambda words: argv(words.replace("PATH=", "PATH=/opt/other:", 1))
    )
    with pytest.raises(TargetError, match="a build.deb is not what here runs: .*overlay-boot"):
        install(target, None, package(tmp_path))


def test_a_folder_of_commands(target: Here, tmp_path: Path) -> None:
    folder = tmp_path / "with blank"
    folder.mkdir()
    with pytest.raises(TargetError, match=r"no overlay-boot on the target's PATH|with blank"):
        install(target, folder, None)
    (folder / "overlay-boot").write_text(SCRIPT)
    (folder / "overlay-boot").chmod(0o755)
    (folder / "overlay-boot").write_text("#!/nowhere/python\n")
    with pytest.raises(TargetError, match="overlay-boot cannot be run on here: .*not found"):
        install(target, folder, None)
    (folder / "overlay-boot").write_text(SCRIPT)
    about = install(target, folder, None)
    assert about["source"] == "/opt/implementation/overlay-boot" and about["name"] == "ours"
    assert "/opt/implementation/overlay-boot" in about["commands"]


def test_what_is_left_is_told_from_what_was_there(target: Here) -> None:
    target.succeed("ip netns add was; mkdir -p /opt/subhost/was")
    before, started = leftovers.look(target), waiting.clock(target)
    target.succeed("ip netns add left; rmdir /opt/subhost/was")
    target.succeed("cp /bin/sleep /tmp/.reaper; /tmp/.reaper 999 > /dev/null 2>&1 &")
    found = str(leftovers.difference(target, before, started, 1))
    assert [re.sub(r" \(pid.*| nsfs", "", line) for line in found.splitlines()] == [
        "left behind: /run/netns/left",
        "left behind: mount /run/netns/left",
        "left behind: process .reaper",
        "no longer there: /opt/subhost/was",
    ]
    target.succeed("ip netns delete left; mkdir /opt/subhost/was; pkill -x .reaper")
    assert not leftovers.difference(target, before, started, 1)


def test_kernel_threads_are_none_of_the_subhosts() -> None:
    if subprocess.run(["pgrep", "-x", "oom_reaper"], capture_output=True, check=False).returncode:
        pytest.skip("no kernel thread is seen in this pid namespace")
    assert not [line for line in leftovers.look(Host()) if "oom_reaper" in line]


@pytest.mark.parametrize("script", ["echo 'mount /opt x'", "echo x; exit 3", "sleep 99"])
def test_a_look_that_fails_or_is_cut_off_is_an_error(
    target: Here, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(leftovers, "LOOK", script)
    target.patience = 0.01
    with pytest.raises(TargetError):
        leftovers.look(target)


def test_a_folder_that_lacks_commands_is_no_implementation(
    target: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of another one, further on in PATH, are not tested in their place."""
    build = tmp_path / "build"
    build.mkdir()
    (build / "overlay-boot").write_text(SCRIPT)
    (build / "overlay-boot").chmod(0o755)
    target.put("/opt/other/overlay-go", SCRIPT, 0o755)
    monkeypatch.setattr(target, "path", f"/opt/other:{target.path}")
    with pytest.raises(TargetError, match=r"build lacks commands .*: /opt/other/overlay-go$"):
        install(target, build, None)


def test_the_version_is_that_of_what_is_tested(target: Here, tmp_path: Path) -> None:
    """Not the commit of the spec, nor that of whatever repository it lies in."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    build = tmp_path / "bin"
    build.mkdir()
    (build / "overlay-boot").write_text('#!/bin/sh\necho "overlay-boot 9.9"\n')
    (build / "overlay-boot").chmod(0o755)
    assert install(target, build, None)["version"] == "9.9"
