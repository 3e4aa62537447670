"""Fixtures of the spec: the target, the implementation on it, and a subhost for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from spec.plugin import describe, judge_run, precondition, record_evidence
from spec.subhost import ROOT, Subhost
from spec.targets import Here, Host, Ssh, Target, TargetError

BIN = "/opt/implementation"  # where a package's commands are linked on the target
LEFT = """grep -E ' (/opt|/run|/srv)[/ ]| (overlay|nsfs) ' /proc/self/mounts; ls -1 /run/netns /run/overlay-boot /opt/subhost; ls -1 /sys/class/net
for p in /proc/[0-9]*; do readlink $p/exe $p/ns/net | tr '\\n' ' '; cat $p/comm; done | sort -u |
    grep -E 'reaper|dummy|overlay' || :"""


def _implementation(config: pytest.Config) -> Path | None:
    given = config.getoption("--implementation")
    return Path(given).absolute() if given else None


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
    raise pytest.UsageError(f"--target {wanted}: here, host or ssh://[user@]machine[:port]")


def install(target: Target, config: pytest.Config) -> dict[str, str]:
    """Put the implementation on the target's PATH; its name and version."""
    folder, deb = _implementation(config), config.getoption("--deb")
    if deb:
        package = Path(deb)
        target.put("/opt/package.deb", package.read_bytes())
        target.succeed(
            f"""cd /opt && dpkg-deb -x package.deb unpacked && mkdir -p {BIN} &&
            for link in unpacked/usr/sbin/* unpacked/usr/bin/*; do
                [ ! -L $link ] || ln -sf /opt/unpacked$(readlink $link) {BIN}/
            done; mkdir -p /var/lib; ls {BIN}/overlay-boot""",
            timeout=60,
        )
        target.path = f"{BIN}:{target.path}"
        version = target.succeed("dpkg-deb -f /opt/package.deb Version").strip()
        return {"name": "debian", "version": version, "source": package.name}
    if folder:
        target.path = f"{folder}:{target.path}"
    found = target.run("command -v overlay-boot")
    if found.status:
        raise TargetError("no overlay-boot on the target's PATH: give --implementation or --deb")
    owner = target.run("dpkg-query -W -f '${Version}' overlay-boot").out if not folder else ""
    name = "debian" if owner else "ours"
    return {"name": name, "version": owner, "source": found.out.strip()}


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
        place.succeed(f"mkdir -p {ROOT} /run/netns && mkdir -p -m 700 /run/overlay-boot")
        before = place.run(LEFT).out
        yield place
        after = place.run(f"rm -rf --one-file-system {ROOT}/.tiny; {LEFT}").out
    finally:
        place.close()
    left = f"the target shows now:\n{after}\nwhere there was:\n{before}"
    judge_run(request.config, "A run leaves nothing behind.", None if after == before else left)


@pytest.fixture
def subhost(target: Target, request: pytest.FixtureRequest) -> Iterator[Subhost]:
    """A subhost of the test's own; whatever the test does, it is gone afterwards."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]
    number = request.config.stash.setdefault(_COUNT, [0])
    number[0] += 1
    commands: list[str] = []
    made = Subhost(target, f"s{worker}x{number[0]}", commands.append)
    record_evidence(request, "to reproduce by hand", lambda: "\n".join(commands))
    record_evidence(request, "the subhost", made.evidence)
    try:
        yield made
    finally:
        made.clear()


_COUNT = pytest.StashKey[list[int]]()


@pytest.fixture
def vlans(target: Target) -> None:
    """Only where the kernel has VLANs."""
    made = target.run(
        "modprobe 8021q; ip link add vlanprobe type veth && "
        "ip link add link vlanprobe name vlanprobe.7 type vlan id 7"
    )
    target.run("ip link delete vlanprobe")
    if made.status:
        precondition("the target's kernel has no VLANs (module 8021q)")
