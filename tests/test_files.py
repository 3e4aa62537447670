"""The files of real subhosts: what is shared, mounted and written, beyond the black-box spec."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from overlay_boot import REAPER
from overlay_boot.linux import open_in_root
from overlay_boot.tree import Made, Tree

from .conftest import Subhost, run, tree


def test_links_in_the_subhosts_tree_do_not_lead_onto_the_host(
    subhost: Subhost, tmp_path: Path
) -> None:
    """Neither for SHARE, nor for what the default hooks make."""
    victim = tmp_path / "victim"
    victim.mkdir()
    root = subhost.folder / "root"
    for name in ("dev", "etc", "sys", "run", "shared"):
        (root / name).symlink_to(victim)
    (root / str(victim).lstrip("/")).mkdir(parents=True)
    subhost.boot("SHARE=/etc/network:/shared/deep")
    assert tree(victim) == []
    assert subhost.stop().returncode == 0
    assert tree(victim) == []


def test_share_brings_submounts_and_makes_mount_points(subhost: Subhost, tmp_path: Path) -> None:
    outside = tmp_path / "out side:x"
    (outside / "sub").mkdir(parents=True)
    (outside / "file").write_text("shared\n")
    subprocess.run(["mount", "-t", "tmpfs", "none", outside / "sub"], check=True)
    try:
        (outside / "sub/deep").write_text("deep\n")
        subhost.boot(f"SHARE={outside}:/a/b\nSHARE={outside}/file:/c/one file")
        assert subhost.inside(
            "cat /a/b/file /a/b/sub/deep '/c/one file'; echo new > /a/b/new"
        ) == ("shared\ndeep\nshared\n")
        assert (outside / "new").read_text() == "new\n"
        assert subhost.stop().returncode == 0
    finally:
        subprocess.run(["umount", outside / "sub"], check=True)


def test_odd_characters_in_paths_reach_the_kernel_whole(subhost: Subhost) -> None:
    for part in ("up,per:1\\ $x", "wo,rk:2\\ '", "li ve,:\\", "lo,wer:\\:z"):
        (subhost.folder / part).mkdir()
    lower = subhost.folder / "lo,wer:\\:z"
    os.rmdir(lower)
    subprocess.run(
        ["cp", "-a", subhost.defaults.split("LOWER=")[1].split("\n")[0], lower], check=True
    )
    subhost.boot("UPPER=up,per:1\\ $x\nWORK=wo,rk:2\\ '\nLIVE=li ve,:\\\nLOWER=lo,wer:\\:z")
    subhost.inside("echo mine > /mine")
    assert (subhost.folder / "up,per:1\\ $x/mine").read_text() == "mine\n"


def test_the_reaper_is_not_written_again_and_is_shared(subhost: Subhost) -> None:
    subhost.boot()
    installed = subhost.folder / "root/.reaper"
    first = installed.stat()
    inode = subhost.inside("stat -c %i /.reaper").strip()

    assert inode == str(os.stat(REAPER).st_ino)
    assert subhost.stop().returncode == 0
    subhost.boot()
    assert (
        installed.stat().st_mtime_ns == first.st_mtime_ns
        and installed.stat().st_ino == first.st_ino
    )


def test_a_folder_is_shared_with_a_running_subhost(subhost: Subhost, tmp_path: Path) -> None:
    subhost.boot()
    shared = tmp_path / "shared:folder"
    shared.mkdir()
    done = run("overlay-share", shared.name, subhost.name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    subhost.inside(f"echo inside > '{shared}/file'")
    assert (shared / "file").read_text() == "inside\n"
    assert run("overlay-share", shared / "missing", subhost.name).returncode == 2
    assert subhost.stop().returncode == 0
    assert tree(shared) == ["file"]
    assert run("overlay-share", shared, subhost.name).returncode == 3


@pytest.mark.parametrize("partition", ["", "2"])
def test_a_disk_image_gives_upper_and_work(subhost: Subhost, partition: str) -> None:
    content = subhost.folder / "content"
    for part in ("deep/upper", "work"):
        (content / part).mkdir(parents=True)
    (subhost.folder / "mnt").mkdir()
    filesystem = subhost.folder / "fs"
    make = ["mke2fs", "-q", "-t", "ext4", "-d", content, filesystem, "8M"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    image = subhost.folder / "disk.img"
    if partition:
        image.write_bytes(bytes(12 << 20))
        table = "label: dos\nstart=2048,size=2048\nstart=4096,size=16384\n"
        subprocess.run(
            ["sfdisk", "-q", image], input=table, text=True, check=True, stdout=subprocess.DEVNULL
        )
        with image.open("r+b") as disk:
            disk.seek(4096 * 512)
            disk.write(filesystem.read_bytes())
    else:
        filesystem.rename(image)
    try:
        subhost.boot(
            f"UPPER=!overlay-diskfile mnt/deep/upper disk.img {partition}\nWORK=mnt/work\n"
        )
        subhost.inside("echo on the disk > /file")
        assert (subhost.folder / "mnt/deep/upper/file").read_text() == "on the disk\n"
        assert subhost.stop().returncode == 0
        subhost.boot(subhost.conf.read_text())  # mounted already
    finally:
        subhost.stop()
        subprocess.run(["umount", subhost.folder / "mnt"], check=True)
    missing = run(
        "overlay-diskfile", "mnt/", "disk.img", "9", cwd=subhost.folder,
        env={**os.environ, "ACTION": "overlay-boot"},
    )  # fmt: skip
    assert missing.returncode == 1 and missing.stderr.count("\n") == 1
    assert run("overlay-diskfile", "mnt/", "disk.img").stdout == "mnt/\n"


@pytest.mark.parametrize("odd", ["pipe", "device", "link"])
def test_a_file_system_without_unnamed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    """The name in between is nobody else's: what has it is not waited for, and not written to."""
    victim, new = tmp_path / "victim", tmp_path / ".hosts.new"
    victim.write_text("theirs\n")
    {"pipe": lambda: os.mkfifo(new), "link": lambda: new.symlink_to(victim)}.get(
        odd, lambda: os.mknod(new, 0o20666, os.makedev(1, 7))
    )()
    monkeypatch.setattr(os, "O_TMPFILE", os.O_TMPFILE & ~os.O_DIRECTORY)  # then it is not known
    with Tree(str(tmp_path)) as root:
        root.write("hosts", b"ours\n", 0o644)
    assert (tmp_path / "hosts").read_text() == "ours\n"
    assert tree(tmp_path) == ["hosts", "victim"] and victim.read_text() == "theirs\n"


@pytest.mark.parametrize("odd", ["pipe", "device", "folder", "huge", "loop"])
def test_only_a_text_is_read(tmp_path: Path, odd: str) -> None:
    file = tmp_path / "hosts"
    {
        "pipe": lambda: os.mkfifo(file),
        "device": lambda: os.mknod(file, 0o20666, os.makedev(1, 5)),
        "folder": file.mkdir,
        "huge": lambda: (file.touch(), os.truncate(file, 6 << 30)),
        "loop": lambda: file.symlink_to("hosts"),
    }[odd]()
    with Tree(str(tmp_path)) as root:
        assert root.read("hosts") == b""


def test_renames_meanwhile_are_no_reason_to_give_up(tmp_path: Path) -> None:
    """The kernel refuses what it cannot tell to be inside the root, because of any rename. That a
    boot had made what was there already, and so removes it when it fails, may not follow either."""
    (tmp_path / "root/dev").mkdir(parents=True)
    (tmp_path / "root/link").symlink_to("../dev")
    (tmp_path / "other").symlink_to("/nowhere")
    swap = f"""
import ctypes
libc = ctypes.CDLL(None)
while not libc.renameat2(-100, b"{tmp_path}/root/dev", -100, b"{tmp_path}/other", 2):
    pass"""
    swapper = subprocess.Popen([sys.executable, "-c", swap])
    made = Made(str(tmp_path / "root"))
    root = os.open(tmp_path / "root", os.O_PATH)
    try:
        while not (tmp_path / "other").is_dir():
            pass
        for _ in range(5000):
            os.close(open_in_root(root, "../link", os.O_PATH | os.O_NOFOLLOW))
            made.note("/dev")
        assert swapper.poll() is None
        assert os.fstat(made.file).st_size == 0
    finally:
        swapper.kill()
        swapper.wait()
        os.close(root)
