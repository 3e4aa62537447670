"""EXAMPLES, as they are printed, and overlay-diskfile(8)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spec.clauses import clause, clauses
from spec.plugin import precondition
from spec.subhost import ROOT, TINY, Subhost
from spec.targets import Target


@pytest.fixture
def example(subhost: Subhost, request: pytest.FixtureRequest) -> Iterator[Subhost]:
    """The subhost with the example's own name and folder, which has root, work and live."""
    name = request.param
    theirs = f"ls -d {ROOT}/{name} /run/netns/{name} /sys/class/net/{name}0 2> /dev/null"
    if found := subhost.target.run(theirs).out.split():
        precondition(f"the target has {', '.join(found)} of its own")
    subhost.run(f"rm -r {subhost.folder}")
    subhost.name, subhost.folder, subhost.conf = (
        name,
        f"{ROOT}/{name}",
        f"{ROOT}/{name}/{name}.conf",
    )
    subhost.log = f"/tmp/overlay-{name}.log"
    subhost.named.append(name)
    subhost.run(f"mkdir -p {subhost.folder}/root {subhost.folder}/work {subhost.folder}/live")
    yield subhost


def printed(subhost: Subhost) -> None:
    """Write the example's configuration as the page prints it."""
    subhost.target.put(subhost.conf, clauses()[f"example-{subhost.name}"].sentence + "\n")


@clause("example-copy", "example-copy-root", "example-copy-go")
@pytest.mark.parametrize("example", ["copy"], indirect=True)
def test_the_smallest_one(example: Subhost) -> None:
    """The commands as printed make a subhost of the main host's root, without a cable."""
    commands = clauses()["example-copy"].sentence.replace("# ", "")
    assert (
        example.run(
            f"cat > {example.folder}/make; bash {example.folder}/make", input=commands + "\n"
        ).status
        == 0
    )
    assert example.run(f"overlay-boot {example.conf} < /dev/null").status == 0
    assert example.up(60)
    assert example.target.read("/etc/os-release") == example.inside("cat /etc/os-release")
    assert list(example.interfaces()) == ["lo"]
    assert (
        example.inside("while read n v; do [ $n != PPid: ] || echo $v; done < /proc/$$/status")
        == "0\n"
    )


@clause("example-tiny", "example-tiny-dummy")
@pytest.mark.parametrize("example", ["tiny"], indirect=True)
def test_tiny(example: Subhost) -> None:
    """With a root of its own in base it runs dummy_service alone, and overlay-go gets in."""
    example.target.succeed(f"cp -a {TINY} {example.folder}/base")
    printed(example)
    assert example.run(f"overlay-boot {example.conf} < /dev/null").status == 0
    assert example.up()
    comms = example.inside("cat /proc/[0-9]*/comm").split()
    assert {".reaper", "dummy_service"} <= set(comms)
    assert sorted(example.interfaces()) == ["eth0", "lo"]
    assert example.target.run("ip -br link show tiny0").status == 0


SERVICES = clauses()["example-mta"].sentence.partition("START= ")[2].split("\n")[0].split()


def mta_services(target: Target) -> None:
    """Only where the six services are installed, with scripts for service(8)."""
    missing = [s for s in SERVICES if not target.exists(f"/etc/init.d/{s}")]
    if missing:
        precondition(f"the target has no /etc/init.d script of {', '.join(missing)}")


@clause("example-mta", "example-mta-root", "example-mta-cable", "example-mta-services")
@pytest.mark.parametrize("example", ["mta"], indirect=True)
def test_mta(example: Subhost) -> None:
    """An overlay of the main host with a cable, whose six services run."""
    mta_services(example.target)
    printed(example)
    assert example.run(f"overlay-boot {example.conf} < /dev/null", timeout=120).status == 0
    assert example.up(180)
    assert example.inside("grep ' / ' /proc/mounts").split()[2] == "overlay"
    example.inside("echo mine > /mine")
    assert example.target.read(f"{example.folder}/root/mine") == "mine\n"
    assert example.target.run("ip -br link show mta0").status == 0
    assert "eth0" in example.interfaces()
    running = example.inside("cat /proc/[0-9]*/comm").split()
    for process in ("rsyslogd", "sshd", "saslauthd", "master", "dovecot"):
        assert process in running


# --- overlay-diskfile


@pytest.fixture
def disk(subhost: Subhost) -> Iterator[Subhost]:
    """The subhost with disk.img (one file system) and parted.img (it is the second partition)."""
    made = subhost.run(
        f"""set -e; cd {subhost.folder}; mkdir -p mnt content/some/path content/some/upper/path
        mkdir -p content/some/work/path; cp -a {TINY}/. content/; cp -a {TINY}/. content/some/path/
        mke2fs -q -t ext4 -d content disk.img 32M; truncate -s 40M parted.img
        truncate -s 1M empty.img
        printf 'label: dos\\nstart=2048,size=2048\\nstart=4096,size=65536\\n' | sfdisk -q parted.img
        dd if=disk.img of=parted.img bs=512 seek=4096 conv=notrunc status=none
        losetup -f > /dev/null""",
        timeout=60,
    )
    if made.status:
        precondition(f"the target cannot make disk images: {' '.join(made.err.split())[:200]}")
    yield subhost
    subhost.stop()
    subhost.run(f"umount {subhost.folder}/mnt")


@clause("diskfile", "diskfile-whole", "lower-command-mounts")
def test_a_disk_image_as_lower(disk: Subhost) -> None:
    """The image's file system, mounted by the ! value, lies under the subhost."""
    disk.boot("LOWER=!overlay-diskfile mnt/ disk.img")
    assert "some" in disk.inside("ls /")


@clause("diskfile-second", "diskfile-partition")
def test_a_partition_as_lower(disk: Subhost) -> None:
    """The second partition of an image."""
    disk.boot("LOWER=!overlay-diskfile mnt/ parted.img 2")
    assert "some" in disk.inside("ls /")


@clause("diskfile-subtree", "diskfile-partition", "diskfile-mountpoint")
def test_a_folder_of_a_partition_as_lower(disk: Subhost) -> None:
    """A path in the image's file system, below the mount point."""
    disk.boot("LOWER=!overlay-diskfile mnt/some/path parted.img 2")
    assert "some" not in disk.inside("ls /") and "bin" in disk.inside("ls /")


@clause("diskfile-upper", "diskfile-same")
def test_upper_and_work_in_a_partition(disk: Subhost) -> None:
    """What the subhost writes is in the image; WORK outside of it starts nothing."""
    disk.boot("UPPER=!overlay-diskfile mnt/some/upper/path parted.img 2\nWORK= mnt/some/work/path")
    disk.inside("echo mine > /mine")
    assert disk.target.read(f"{disk.folder}/mnt/some/upper/path/mine") == "mine\n"
    disk.stop()
    disk.start("UPPER=!overlay-diskfile mnt/some/upper/path parted.img 2")
    assert not disk.up(2)


@clause("diskfile-mounted", "diskfile-stays")
def test_a_mounted_image_is_used_as_it_is(disk: Subhost) -> None:
    """The mount stays when the subhost ends, and serves the next start."""
    for _ in range(2):
        disk.boot("LOWER=!overlay-diskfile mnt/ disk.img")
        disk.stop()
        mounts = disk.target.read("/proc/self/mounts")
        assert mounts.count(f" {disk.folder}/mnt ") == 1


@clause("diskfile-inactive")
def test_outside_of_a_boot_nothing_is_mounted(subhost: Subhost) -> None:
    """It only prints the path."""
    done = subhost.run(f"cd {subhost.folder} && overlay-diskfile mnt/some/path disk.img 2")
    assert (done.status, done.out) == (0, "mnt/some/path\n"), done


@clause("diskfile-fails")
@pytest.mark.parametrize("what", ["nothing.img", "empty.img", "disk.img 7"])
def test_an_image_that_cannot_be_mounted_fails_the_boot(disk: Subhost, what: str) -> None:
    """One line says so, and nothing is started."""
    done = disk.start(f"LOWER=!overlay-diskfile mnt/ {what}")
    assert done.status != 0 and what.split()[0] in done.err and not disk.pid1(), done
