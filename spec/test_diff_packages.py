"""overlay-diff and the packages of the main host: what has gone stale, and what the subhost's own dpkg
no longer knows. Small packages are made with dpkg-deb and installed by dpkg itself, into LOWER and,
from outside, into a running subhost's root."""

from __future__ import annotations

import shlex

import pytest

from spec.clauses import clause
from spec.subhost import Subhost
from spec.test_diff import as_json, diff, lines, tables

# Two files, a link and a configuration file, which is the same in every version but 9.
PACKAGE = r"""
set -e
mkdir -p b/DEBIAN b/usr/share/NAME b/etc
cat > b/DEBIAN/control << END
Package: NAME
Version: VERSION
Architecture: $(dpkg --print-architecture)
Multi-Arch: MULTIARCH
Maintainer: Nobody <nobody@example.org>
Description: for a test
END
for file in one two; do echo NAME VERSION $file > b/usr/share/NAME/$file; done
ln -s one-VERSION b/usr/share/NAME/link
[ VERSION = 9 ] && echo VERSION > b/etc/NAME.conf || echo same > b/etc/NAME.conf
echo /etc/NAME.conf > b/DEBIAN/conffiles
dpkg-deb --root-owner-group --build b NAME_VERSION.deb
rm -r b
"""


# A dpkg of today makes of /proc/PID/root what that link says, which is /: so the root of a process is
# mounted here first (open_tree(2), move_mount(2)).
MOUNT_ROOT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
home, root = os.open("/proc/self/ns/mnt", os.O_RDONLY), os.open("/", os.O_RDONLY)
target = os.open(sys.argv[2], os.O_PATH)
check(libc.setns(os.open(sys.argv[1] + "/ns/mnt", os.O_RDONLY), 0))
tree = check(libc.open_tree(-100, b"/", ctypes.c_uint(0x80001)))
check(libc.setns(home, 0))
os.fchdir(root)
os.chroot(".")
check(libc.move_mount(tree, b"", target, b"", ctypes.c_uint(0x44)))
"""


class Dpkg:
    """A dpkg that works on a root file system below the subhost's folder, or on the root of a
    process, given as /proc/PID/root."""

    def __init__(self, subhost: Subhost, root: str) -> None:
        self.subhost = subhost
        self.root = root

    def make(self) -> None:
        """Begin a database."""
        self.subhost.prepare_host(
            f"mkdir -p {self.root}/var/lib/dpkg/info {self.root}/var/lib/dpkg/updates && "
            f"touch {self.root}/var/lib/dpkg/status {self.root}/var/lib/dpkg/available"
        )

    def run(self, words: str) -> None:
        """Run dpkg; the packages that are named have no scripts, so nothing is run in the root."""
        root, before, after = self.root, "", ""
        process, link, _ = self.root.rpartition("/root")
        if link and process.startswith("/proc/"):
            root = "$PWD/its-root"
            mount = f"python3 -c {shlex.quote(MOUNT_ROOT)} {process} its-root"
            before = f"mkdir -p its-root && {mount} && "
            after = "; done=$?; umount its-root; [ $done = 0 ]"
        dpkg = f"dpkg --root={root} --log=/dev/null --force-confold {words}"
        command = f"{before}{{ {dpkg}{after}; }}"
        self.subhost.prepare_host(f"cd {self.subhost.folder} && {command}", timeout=60)

    def install(self, name: str, version: str, multiarch: str = "foreign") -> None:
        """Unpack and configure a version of a package, made for it."""
        script = PACKAGE.replace("NAME", name).replace("VERSION", version)
        self.subhost.prepare_host(
            f"cd {self.subhost.folder} && {script.replace('MULTIARCH', multiarch)}", timeout=60
        )
        self.run(f"--install {name}_{version}.deb")


@pytest.fixture
def lower(subhost: Subhost) -> Dpkg:
    """The main host's dpkg."""
    dpkg = Dpkg(subhost, subhost.fill("lower"))
    dpkg.make()
    return dpkg


def boot(subhost: Subhost) -> Dpkg:
    """Boot it over LOWER; the subhost's own dpkg."""
    subhost.boot(f"LOWER= {subhost.folder}/lower")
    return Dpkg(subhost, f"/proc/{subhost.pid1()}/root")


def stale(subhost: Subhost) -> set[str]:
    """The paths that are stale."""
    return {path for path, line in lines(diff(subhost)).items() if line.change == "stale"}


@clause("diff-stale", "diff-stale-package")
def test_a_file_of_a_package_that_was_upgraded(subhost: Subhost, lower: Dpkg) -> None:
    """What the subhost changed before the upgrade is stale, whether it wrote to it, made it
    anew, changed its mode or wrote to it once more afterwards; what it has made since is not,
    nor what the main host has touched by hand."""
    for name in ("demo", "other"):
        lower.install(name, "1")
    boot(subhost)
    subhost.inside(
        "cd /usr/share; echo mine >> demo/one; chmod 600 demo/two; echo mine > other/x; "
        "ln -sf mine demo/link; mv other/x other/one; echo mine >> other/two"
    )
    subhost.prepare_host(f"touch {lower.root}/usr/share/other/two")
    assert stale(subhost) == set()
    lower.install("demo", "2")
    subhost.inside("cd /usr/share; echo again >> demo/one; chmod 640 demo/two")
    files = {f"/usr/share/demo/{name}" for name in ("one", "two", "link")}
    assert stale(subhost) == files
    found = lines(diff(subhost))["/usr/share/demo/one"]
    assert "demo" in found.note and "2" in found.note, found
    change = as_json(subhost)["changes"]["/usr/share/demo/one"]
    assert (change["change"], change["stale"], change["package"]) == ("changed", True, "demo")
    lower.install("other", "2")
    subhost.inside("cd /usr/share/other; echo since > x; mv x one")
    assert stale(subhost) == files | {"/usr/share/other/two"}


@clause("diff-stale")
def test_below_a_link_of_the_root(subhost: Subhost, lower: Dpkg) -> None:
    """A file of an upgraded package is stale also where the package's list names it by a link
    of the root, where the package is one of several architectures, and where it lies at a
    diverted path."""
    subhost.prepare_host(f"cd {lower.root} && mkdir -p usr/share && ln -s usr/share data")
    lower.install("demo", "1", "same")
    lower.install("late", "1")
    subhost.prepare_host(
        f"dpkg-divert --root={lower.root} --package third --divert /usr/share/demo/off --rename "
        "--add /usr/share/late/two"
    )
    boot(subhost)
    subhost.inside("cd /usr/share; echo mine >> demo/one; echo mine > demo/off; echo x > late/two")
    lower.install("demo", "2", "same")
    lower.install("late", "2")
    subhost.prepare_host(
        f"sed -i 's|^/usr/share/|/data/|' {lower.root}/var/lib/dpkg/info/demo*.list"
    )
    assert stale(subhost) == {"/usr/share/demo/one", "/usr/share/demo/off"}


@clause("diff-stale-conffile", "diff-stale-unpackaged")
def test_what_an_upgrade_leaves_alone(subhost: Subhost, lower: Dpkg) -> None:
    """A configuration file that is the same in the new version is not stale, nor is a file of
    no package that has changed below."""
    lower.install("demo", "1")
    lower.install("confer", "1")
    subhost.prepare_host(f"echo host > {lower.root}/etc/own; mkdir {lower.root}/srv/new")
    boot(subhost)
    subhost.inside(
        "cd /etc; echo mine >> demo.conf; echo mine >> confer.conf; echo mine >> own; "
        "echo mine > /srv/new/later"
    )
    subhost.prepare_host(f"echo more >> {lower.root}/etc/own")
    lower.install("demo", "2")
    lower.install("confer", "9")
    found = {path: line.change for path, line in lines(diff(subhost, "/etc")).items()}
    assert found["/etc/demo.conf"] == found["/etc/own"] == "changed", found
    assert found["/etc/confer.conf"] == "stale", found


@clause("diff-stale-own")
def test_a_package_of_the_subhosts_own(subhost: Subhost, lower: Dpkg) -> None:
    """Where the subhost has unpacked a package itself before LOWER did, only an older version
    is stale, by dpkg's order of versions."""
    versions = {"older": ("1.9", "1.10"), "even": ("2", "2"), "newer": ("1:0.1", "3")}
    for name in versions:
        lower.install(name, "1")
    own = boot(subhost)
    for name, (here, _) in versions.items():
        own.install(name, here)
    subhost.inside("for name in older even newer; do echo mine >> /usr/share/$name/one; done")
    for name, (_, below) in versions.items():
        lower.install(name, below)
    assert "/usr/share/older/one" in stale(subhost)
    assert not [path for path in stale(subhost) if "/older/" not in path]


@clause("diff-stale-lower")
def test_a_lower_without_a_dpkg(subhost: Subhost) -> None:
    """Where LOWER has no dpkg, what differs and has been put there since is stale, and what is
    older is not."""
    lower = subhost.fill("lower")
    subhost.prepare_host(f"echo 1 > {lower}/srv/a; echo 1 > {lower}/srv/b; echo 1 > {lower}/srv/c")
    boot(subhost)
    subhost.inside("cd /srv; echo mine > a; echo mine > b; : >> c")
    subhost.prepare_host(f"echo 2 > {lower}/new && mv {lower}/new {lower}/srv/a")
    subhost.prepare_host(f"cd {lower}/srv && cp -p c new && mv new c")
    assert stale(subhost) == {"/srv/a"}
    change = as_json(subhost)["changes"]["/srv/a"]
    assert (change["stale"], change["package"]) == (True, None)


@clause("diff-packages", "diff-installed-here", "diff-removed-here", "diff-own-version",
        "diff-installed-below", "diff-removed-below", "diff-changed-below")  # fmt: skip
def test_the_packages_of_both(subhost: Subhost, lower: Dpkg) -> None:
    """Once a dpkg has run in the subhost overlay-diff tells how each package differs; before
    that it tells of none, whatever happens below."""
    for name in ("changed", "owned", "purged", "removed", "lost", "same"):
        lower.install(name, "1")
    own = boot(subhost)
    lower.install("before", "1")
    assert len(tables(diff(subhost))) == 1
    own.install("mine", "1")
    own.install("owned", "2")
    own.run("--purge purged")
    own.run("--remove removed")
    for name, version in (("changed", "2"), ("new", "1"), ("purged", "2"), ("same", "1")):
        lower.install(name, version)
    lower.run("--purge lost")
    _, (head, *rows) = tables(diff(subhost))
    assert {row[1]: (row[0], *row[2:]) for row in rows} == {
        "changed": ("changed-below", "1", "2"),
        "owned": ("own-version", "2", "1"),
        "purged": ("removed-here", "-", "2"),
        "removed": ("removed-here", "-", "1"),
        "lost": ("removed-below", "1", "-"),
        "mine": ("installed-here", "1", "-"),
        "new": ("installed-below", "-", "1"),
    }, head
    rows = as_json(subhost)["packages"]
    keys = {"package": "lost", "state": "removed-below", "here": "1", "lower": None}
    assert len(rows) == 7 and keys in rows, rows
    assert len(tables(diff(subhost, "/usr"))) == 1


@clause("diff-drop", "diff-packages")
def test_a_status_file_that_is_dropped(subhost: Subhost, lower: Dpkg) -> None:
    """Once the subhost's status file was dropped its dpkg knows what LOWER's knows."""
    lower.install("demo", "1")
    own = boot(subhost)
    own.install("mine", "1")
    lower.install("demo", "2")
    subhost.stop()
    done = subhost.on_host(f"overlay-diff --drop /var/lib/dpkg/status {subhost.conf}")
    assert done.status == 0, done
    assert len(tables(diff(subhost))) == 1
    own = boot(subhost)
    shown = f"sed -n 's/^Package: //p; s/^Version: //p' {own.root}/var/lib/dpkg/status"
    assert subhost.prepare_host(shown) == "demo\n2\n"


def warned(subhost: Subhost) -> list[str]:
    """The lines of a boot that name overlay-diff, and the same of the log."""
    done = subhost.boot(f"LOWER= {subhost.folder}/lower")
    said = [line for line in done.err.splitlines() if "overlay-diff" in line]
    logged = subhost.target.read(subhost.log).splitlines()
    assert len(said) == len([line for line in logged if "overlay-diff" in line])
    return said


@clause("diff-warning", "diff-warning-only")
def test_a_boot_tells_of_it(subhost: Subhost, lower: Dpkg) -> None:
    """A boot warns once LOWER's packages are newer than the subhost's own database, neither
    before nor once the subhost's dpkg has run again."""
    lower.install("demo", "1")
    assert warned(subhost) == []
    Dpkg(subhost, f"/proc/{subhost.pid1()}/root").install("mine", "1")
    subhost.stop()
    assert warned(subhost) == []
    subhost.stop()
    lower.install("demo", "2")
    said = warned(subhost)
    assert len(said) == 1 and subhost.name in said[0], said
    Dpkg(subhost, f"/proc/{subhost.pid1()}/root").install("mine", "2")
    subhost.stop()
    subhost.prepare_host(f": > {subhost.log}")
    assert warned(subhost) == []
