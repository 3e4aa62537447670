"""python -m tests.debian: the packages as Debian would get them, and what its own tools say of them.

Source and binary packages are built by an ordinary user in a chroot of a suite, then looked at by
lintian (all tags), blhc and piuparts, and built once more for arm64. What passes lands in dist/.
Everything happens in an overlay over the chroot, which is kept in .cache for the next time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from vm.errors import HostError
from vm.mirrors import mirrors, settings
from vm.processes import run
from vm.recipe import SUITES, sources

ROOT = Path(__file__).parent.parent.parent
CACHE = ROOT / ".cache/deb-check"
NAME = "overlay-boot-python"
OTHER = "arm64"  # the architecture of the cross build
TOOLS = ["lintian", "blhc", "piuparts", "mmdebstrap", "qemu-user", f"crossbuild-essential-{OTHER}"]
#: What follows from the address that only the owner can give: see CONTRIBUTING.md.
ADDRESS = r"(bogus-mail-host(-in-debian-changelog)?|root-in-contact) "
#: As root: root directory of the chroot, of the work folder, then a command to run in the overlay.
OVERLAY = """
tree=$1 work=$2; shift 2
mkdir -p "$work/new" && mount -t tmpfs overlay "$work/new"
mkdir "$work/new/upper" "$work/new/work" "$work/new/root"
root=$work/new/root
mount -t overlay -o "lowerdir=$tree,upperdir=$work/new/upper,workdir=$work/new/work" build "$root"
mkdir -p "$root/build"
mount --bind "$work/build" "$root/build"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
cp /etc/resolv.conf "$root/etc/resolv.conf"
echo builder:x:1000:1000::/build:/bin/sh >> "$root/etc/passwd"
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/build LC_ALL=C.UTF-8 "$@"
"""
USER = "setpriv --reuid=1000 --regid=1000 --clear-groups"


class Check:
    """One run for one suite."""

    def __init__(self, suite: str, work: Path) -> None:
        self.suite, self.work, self.build = suite, work, work / "build"
        self.tree = CACHE / suite
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        self.source = f"{NAME}-{project['version']}"
        self.version = str(project["version"])

    def inside(self, command: str, log: str) -> str:
        """What a shell command prints that runs as root in the chroot. Raises HostError."""
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        words += ["sh", "-ec", OVERLAY, "sh", str(self.tree), str(self.work)]
        words += ["sh", "-ec", f"cd /build; {command}"]
        return run(log, *words, log=self.build / f"{log}.log", limit=1800)

    def chroot(self) -> str:
        """Make the chroot, or bring it up to date."""
        if not self.tree.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=CACHE) as place:
                fresh = Path(place) / "tree"
                words = ["mmdebstrap", "--variant=buildd", f"--architectures=amd64,{OTHER}"]
                known = mirrors()
                words += [f"--aptopt={settings(Path(place), known.logins)}"]
                words += [f"--include=ca-certificates,{','.join(TOOLS)}"]
                run("mmdebstrap", *words, self.suite, fresh, *sources(self.suite, known))
                fresh.rename(self.tree)
        # Not in the overlay: the next run has it.
        words = ["chroot", str(self.tree), "sh", "-ec"]
        shutil.copy("/etc/resolv.conf", self.tree / "etc/resolv.conf")
        fetch = "apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -yq dist-upgrade"
        run("apt-get", *words, fetch, log=self.build / "apt.log")
        control = self.tree / "tmp/source/debian"
        shutil.copytree(ROOT / "debian", control, dirs_exist_ok=True)
        depends = "cd /tmp/source && apt-get -yq build-dep"
        both = f"{depends} ./ && {depends} --arch-only -a{OTHER} -Pcross,nocheck ./"
        run("apt-get", *words, both, log=self.build / "apt.log")
        return f"{self.suite}, up to date"

    def package(self) -> str:
        """Build source and binary packages of the files that git knows, as an ordinary user."""
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True
        )
        copy: list[str | Path] = [
            "xargs",
            "-0",
            "cp",
            "-a",
            "--parents",
            "-t",
            self.build / self.source,
        ]
        (self.build / self.source).mkdir()
        subprocess.run(copy, cwd=ROOT, check=True, input=listed.stdout)
        tar = f"tar --anchored --exclude={self.source}/debian --sort=name -cJf {NAME}_{self.version}.orig.tar.xz {self.source}"
        command = f"{tar}; cp -a {self.source} cross; chown -R 1000:1000 ."
        self.inside(f"{command}; cd {self.source}; {USER} dpkg-buildpackage -us -uc", "build")
        built = sorted(file.name for file in self.build.glob("*.deb"))
        return f"{len(built)} packages with source: {' '.join(built)}"

    def lintian(self) -> str:
        """All tags, on source and binaries; the overrides are shown in its log."""
        shown = self.inside(
            f"{USER} lintian -EIL +pedantic --show-overrides --fail-on none *_amd64.changes",
            "lintian",
        )
        tags = [line for line in shown.splitlines() if re.match("[EWIPXC]: ", line)]
        others = [tag for tag in tags if not re.search(rf": {ADDRESS}", tag)]
        if others:
            raise HostError("lintian: " + "\n".join(others))
        overridden = len(re.findall("(?m)^O: ", shown))
        return f"silent, but for {len(tags)} on the maintainer's address; {overridden} overridden"

    def blhc(self) -> str:
        """The flags of each line that compiles or links."""
        self.inside("blhc --all build.log", "blhc")
        return "every compile line is hardened"

    def cross(self) -> str:
        """A build for another architecture, whose program runs under an emulator."""
        self.inside(
            f"cd cross; {USER} dpkg-buildpackage -a{OTHER} -Pcross,nocheck -B -us -uc", "cross"
        )
        found = self.inside(
            f"blhc --all --arch={OTHER} cross.log; dpkg-deb -x {NAME}_*_{OTHER}.deb crossed;"
            " reaper=crossed/usr/lib/python3/dist-packages/overlay_boot/reaper;"
            " qemu-aarch64 $reaper; file -b $reaper",
            "crossed",
        )
        if "static-pie" not in found or "aarch64" not in found:
            raise HostError(f"cross: not a static-pie for {OTHER}: {found}")
        return found.strip()

    def piuparts(self) -> str:
        """Installing, and purging without a trace, each package in a small chroot of its own."""
        file = settings(self.build, mirrors().logins)
        file.write_text(file.read_text().replace(str(self.build), "/build"))
        base = "mmdebstrap --variant=apt --mode=root --include=ca-certificates"
        base += f" --aptopt=/build/{file.name} {self.suite} base.tar"
        self.inside(
            f"{base} /etc/apt/sources.list >base.log 2>&1 || {{ tail base.log; exit 1; }};"
            " piuparts -b base.tar --no-eatmydata --skip-logrotatefiles-test"
            f" --warn-on-usr-move=disabled {NAME}_*_amd64.deb overlay-boot-spec_*.deb",
            "piuparts",
        )
        return "installed and purged without a trace"

    def keep(self) -> str:
        """Put the packages into dist/."""
        (ROOT / "dist").mkdir(exist_ok=True)
        for file in self.build.glob("*"):
            if re.fullmatch(r".*\.(deb|dsc|changes|buildinfo|tar\..*)", file.name):
                shutil.copy(file, ROOT / "dist")
        return "dist/"


def main() -> int:
    """Run the checks; 0 when nothing is to be said against the packages."""
    parser = argparse.ArgumentParser("python -m tests.debian", description=__doc__)
    parser.add_argument("--suite", default="sid", choices=SUITES)
    parser.add_argument("--only", nargs="*", default=[], metavar="STEP", help="after the build")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("python -m tests.debian: chroots are for root: try sudo", file=sys.stderr)
        return 2
    logs = ROOT / "build/deb-check"
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        check = Check(options.suite, Path(folder))
        check.build.mkdir()
        steps: list[Callable[[], str]] = [check.chroot, check.package]
        more = [check.lintian, check.blhc, check.cross, check.piuparts, check.keep]
        steps += [step for step in more if not options.only or step.__name__ in options.only]
        try:
            return run_steps(steps)
        finally:
            logs.mkdir(exist_ok=True)
            for file in check.build.glob("*.log"):
                shutil.copy(file, logs)


def run_steps(steps: list[Callable[[], str]]) -> int:
    """Each step with what came of it; the first two have to succeed."""
    failed = 0
    for number, step in enumerate(steps):
        begin = time.monotonic()
        try:
            word, said = "ok", step()
        except HostError as error:
            word, said, failed = "FAILED", f"{error} (logs: build/deb-check)", failed + 1
        print(f"{word:7}{step.__name__:9}{time.monotonic() - begin:4.0f} s  {said}", flush=True)
        if failed and number < 2:
            break
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
