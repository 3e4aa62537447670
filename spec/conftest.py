"""Fixtures of the spec: the target, the implementation on it, and a subhost for each test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from spec.plugin import describe, judge_run, precondition, record_evidence
from spec.subhost import MAKE_TINY, ROOT, TINY, Subhost
from spec.targets import Here, Host, Ssh, Target, TargetError, Virtual, fresh_each

WORKERS = "one machine cannot be shared: -n 1, or no -n, with this target"
BIN = "/opt/implementation"  # where a package's commands are linked on the target
LEFT = """grep -E ' (/opt|/run|/srv)[/ ]| (overlay|nsfs) ' /proc/self/mounts | grep -v ' /run/netns '
find /run/netns /run/overlay-boot /opt/subhost /sys/class/net -mindepth 1
for p in /proc/[0-9]*; do readlink $p/exe $p/ns/net | tr '\\n' ' '; cat $p/comm; done | sort -u |
    grep -E 'reaper|dummy|overlay' || :"""


def _implementation(config: pytest.Config) -> Path | None:
    """What is to be tested; on this machine by default the clone's own commands."""
    given = config.getoption("--implementation")
    if given or config.getoption("--deb"):
        return Path(given).absolute() if given else None
    own = Path(sys.executable).parent / "overlay-boot"
    here = config.getoption("--target") in ("here", "host")
    return own.parent if here and not shutil.which("overlay-boot") and own.exists() else None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse what cannot work before the first test, and prepare virtual machines once for all
    workers, with its progress on the terminal."""
    target = session.config.getoption("--target")
    if target.startswith("vm://"):
        from vm.processes import end_in_order

        end_in_order()
    if hasattr(session.config, "workerinput") or session.config.option.collectonly:
        return
    kind = target.partition("://")[0]
    if kind not in ("here", "host", "ssh", "vm"):
        pytest.exit(f"--target {target}: here, host, ssh://[user@]machine[:port], vm://SUITE", 2)
    if kind in ("here", "host") and os.geteuid() != 0:
        pytest.exit(f"--target {target} makes namespaces and mounts: run the spec as root", 2)
    several = (session.config.getoption("numprocesses", None) or 0) > 1
    url, fresh = fresh_each(target)
    if several and (kind in ("host", "ssh") or not fresh):
        pytest.exit(f"--target {target}: {WORKERS}", 2)
    if kind != "vm":
        return
    import vm

    try:
        vm.prepare(url, say=lambda line: print(line, flush=True))
    except vm.MachineError as error:
        pytest.exit(str(error), returncode=1)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the machines of workers that xdist had to kill."""
    if config.getoption("--target").startswith("vm://") and not hasattr(config, "workerinput"):
        import vm
        from vm.folders import sweep

        with suppress(vm.MachineError):  # a folder that cannot be used has been told of
            sweep()


def make_target(config: pytest.Config) -> Target:
    """The target that --target names. Raises TargetError."""
    wanted = config.getoption("--target")
    folder = _implementation(config)
    if wanted == "here":
        kept = [Path(__file__).parent.parent, *([folder.resolve()] if folder else [])]
        return Here(kept)
    if wanted == "host":
        return Host()
    if wanted.startswith("ssh://"):
        return Ssh(wanted)
    return Virtual(wanted)


def install(target: Target, config: pytest.Config) -> dict[str, str]:
    """Put the implementation on the target's PATH; its name and version."""
    folder = _implementation(config)
    deb = Path(config.getoption("--deb")) if config.getoption("--deb") else None
    if folder and folder.suffix == ".deb":
        folder, deb = None, folder
    if deb:
        target.put("/opt/package.deb", deb.read_bytes())
        name, version = target.succeed(
            "dpkg-deb -W --showformat '${Package} ${Version}' /opt/package.deb"
        ).split()
        if isinstance(target, Virtual):
            target.install(deb)
        elif name != "overlay-boot":
            raise TargetError(f"{deb.name} has modules of Python: test it in a vm:// target")
        else:
            unpack(target)
        return {
            "name": "debian" if name == "overlay-boot" else "ours",
            "version": version,
            "source": deb.name,
        }
    if folder and isinstance(target, Virtual):
        target.install(folder)
    elif folder:
        target.path = f"{folder}:{target.path}"
    found = target.run("command -v overlay-boot").out.strip()
    if not found:
        raise TargetError("no overlay-boot on the target's PATH: give --implementation or --deb")
    if target.path.startswith(f"{folder}:") and found != f"{folder}/overlay-boot":
        raise TargetError(f"{target.name} has no {folder}/overlay-boot")
    owner = target.run(
        f"dpkg-query -W -f '${{Package}} ${{Version}}' \"$(dpkg -S {found} | sed 's/:.*//')\""
    ).out.split()
    name = {"overlay-boot": "debian"}.get(owner[0] if owner else "", "ours")
    return {"name": name, "version": owner[1] if owner else _commit(), "source": found}


def _commit() -> str:
    """The commit of this working tree, where git knows it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def unpack(target: Target) -> None:
    """A package's commands on the PATH of a target that is not to be changed."""
    target.succeed(
        f"""cd /opt && dpkg-deb -x package.deb unpacked && mkdir -p {BIN} &&
        for link in unpacked/usr/sbin/* unpacked/usr/bin/*; do
            [ ! -L $link ] || ln -sf /opt/unpacked$(readlink $link) {BIN}/
        done; ls {BIN}/overlay-boot""",
        timeout=60,
    )
    target.path = f"{BIN}:{target.path}"


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Where the subhosts run, with the implementation installed."""
    place = make_target(request.config)
    try:
        about = install(place, request.config)
        system = place.run(". /etc/os-release; echo $PRETTY_NAME; uname -r; uname -m").out.split(
            "\n"
        )
        where = {
            "name": place.name,
            "system": system[0],
            "kernel": system[1],
            "machine": system[2],
        }
        describe(request.config, implementation=about, target=where)
        place.patience = request.config.getoption("--patience") or place.patience
        place.succeed(f"mkdir -p {ROOT}")
        place.succeed(MAKE_TINY)
        place.freeze()
        before = "" if place.disposable else place.run(LEFT).out  # it takes long when emulated
        if place.note:
            describe(request.config, implementation=about, target=where | {"note": place.note})
        yield place
        if not place.disposable:
            limit = time.monotonic() + 10 * place.patience
            while (after := place.run(LEFT).out) != before and time.monotonic() < limit:
                time.sleep(0.2)
            place.run(f"rm -r {TINY}")
    finally:
        place.close()
    if not place.disposable:
        left = f"the target shows now:\n{after}\nwhere there was:\n{before}"
        judge_run(
            request.config, "A run leaves nothing behind.", None if after == before else left
        )


@pytest.fixture
def subhost(target: Target, request: pytest.FixtureRequest) -> Iterator[Subhost]:
    """A subhost of the test's own; whatever the test does, it is gone afterwards."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]
    number = request.config.stash.setdefault(_COUNT, [0])
    number[0] += 1
    commands: list[str] = []
    with ExitStack() as stack:

        def make() -> Subhost:
            stack.enter_context(target.fresh())
            return Subhost(target, f"s{worker}x{number[0]}", commands.append)

        try:
            made = make()
        except TargetError as error:  # a machine that breaks before the test has begun
            record_evidence(request, "another machine broke at once", str(error))
            stack.close()
            made = make()
        record_evidence(request, "to reproduce by hand", commands)
        record_evidence(request, "the subhost", made.evidence)
        try:
            yield made
        finally:
            if not target.disposable:
                made.clear()


_COUNT = pytest.StashKey[list[int]]()


@pytest.fixture
def vlans(subhost: Subhost) -> None:
    """Only where the kernel has VLANs."""
    made = subhost.target.run(
        "modprobe 8021q; ip link add vlanprobe type veth && "
        "ip link add link vlanprobe name vlanprobe.7 type vlan id 7"
    )
    subhost.target.run("ip link delete vlanprobe")
    if made.status:
        precondition("the target's kernel has no VLANs (module 8021q)")


@pytest.fixture
def interfaces(subhost: Subhost) -> Iterator[None]:
    """The target's interfaces(5), put back as it was; only where there is ifupdown."""
    if subhost.target.run("command -v ifup && [ -e /etc/network/interfaces ]").status:
        precondition("the target has no ifupdown, or no /etc/network/interfaces")
    subhost.prepare("cp -a /etc/network/interfaces /etc/network/interfaces.spec")
    yield
    if not subhost.target.disposable:  # what ifup took up is taken down by the same stanzas
        subhost.target.run(f"overlay-stop {subhost.conf}", timeout=60)
        subhost.target.run("mv /etc/network/interfaces.spec /etc/network/interfaces")
