"""overlay-diskfile(8)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.plugin import precondition
from spec.subhost import TINY, Subhost


@pytest.fixture
def disk(subhost: Subhost) -> Iterator[Subhost]:
    """The subhost with disk.img (one file system) and parted.img (it is the second partition)."""
    made = subhost.on_host(
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
    subhost.target.run(f"overlay-stop {subhost.conf}; umount {subhost.folder}/mnt", timeout=60)


@clause("diskfile", "diskfile-whole", "lower-command-mounts")
def test_a_disk_image_as_lower(disk: Subhost) -> None:
    """The image's file system, mounted by the ! value, lies under the subhost."""
    disk.boot("LOWER=!overlay-diskfile mnt/ disk.img")
    assert "some" in disk.inside("ls /")


@clause("diskfile-second", "diskfile-partition")
def test_a_partition_as_lower(disk: Subhost) -> None:
    """The second partition of a disk image lies under the subhost."""
    disk.boot("LOWER=!overlay-diskfile mnt/ parted.img 2")
    assert "some" in disk.inside("ls /")


@clause("diskfile-mountpoint")
def test_the_mount_point_is_what_is_there(disk: Subhost) -> None:
    """The mount point is the longest leading part of the path that is a folder before the
    image is mounted."""
    disk.on_host(f"mkdir {disk.folder}/mnt/deep")
    disk.boot("LOWER=!overlay-diskfile mnt/deep/some/path disk.img")
    assert f" {disk.folder}/mnt/deep ext4 " in disk.target.read("/proc/self/mounts")
    assert "some" not in disk.inside("ls /")


@clause("diskfile-subtree", "diskfile-partition")
def test_a_folder_of_a_partition_as_lower(disk: Subhost) -> None:
    """The rest of a path, below the mount point, is a path in the image's file system."""
    disk.boot("LOWER=!overlay-diskfile mnt/some/path parted.img 2")
    assert "some" not in disk.inside("ls /") and "bin" in disk.inside("ls /")


@clause("diskfile-upper", "diskfile-same")
def test_upper_and_work_in_a_partition(disk: Subhost) -> None:
    """What the subhost writes is in the image, and a WORK outside of it starts nothing."""
    disk.boot("UPPER=!overlay-diskfile mnt/some/upper/path parted.img 2\nWORK= mnt/some/work/path")
    disk.inside("echo mine > /mine")
    assert disk.target.read(f"{disk.folder}/mnt/some/upper/path/mine") == "mine\n"
    disk.stop()
    disk.refused("UPPER=!overlay-diskfile mnt/some/upper/path parted.img 2")


@clause("diskfile-mounted", "diskfile-stays")
def test_a_mounted_image_is_used_as_it_is(disk: Subhost) -> None:
    """The mount stays when the subhost ends, serves the next start, and goes by umount(8)."""
    for _ in range(2):
        disk.boot("LOWER=!overlay-diskfile mnt/ disk.img")
        disk.stop()
        mounts = disk.target.read("/proc/self/mounts")
        assert mounts.count(f" {disk.folder}/mnt ") == 1
    disk.prepare_host(f"umount {disk.folder}/mnt")
    assert f" {disk.folder}/mnt " not in disk.target.read("/proc/self/mounts")


@clause("diskfile-inactive")
def test_outside_of_a_boot_nothing_is_mounted(subhost: Subhost) -> None:
    """Outside of a boot overlay-diskfile mounts nothing and only prints the path."""
    done = subhost.on_host(f"cd {subhost.folder} && overlay-diskfile mnt/some/path disk.img 2")
    assert (done.status, done.out) == (0, "mnt/some/path\n"), done


@clause("diskfile-fails")
@pytest.mark.parametrize("what", ["nothing.img", "empty.img", "disk.img 7"])
def test_an_image_that_cannot_be_mounted_fails_the_boot(disk: Subhost, what: str) -> None:
    """overlay-diskfile tells in one line that an image cannot be mounted, and the boot fails."""
    environment = f"env ACTION=overlay-boot CONFIG={disk.conf}"
    done = disk.on_host(f"cd {disk.folder} && {environment} overlay-diskfile mnt/ {what}")
    one_line(done, 1, what.split()[0])
    done = disk.refused(f"LOWER=!overlay-diskfile mnt/ {what}")
    assert done.status and what.split()[0] in done.err, done
