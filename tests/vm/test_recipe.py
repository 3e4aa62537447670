"""The recipe, its key, apt's mirrors, and the parts of an image that can be made alone."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from vm import image, recipe
from vm.errors import RequestError

MIRROR = "http://mirror.example/debian"


@pytest.fixture(autouse=True)
def mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR", MIRROR)


def test_same_recipe_same_key_and_any_change_another() -> None:
    plain = recipe.recipe("trixie")
    assert plain.key == recipe.recipe("trixie").key
    changed = [
        recipe.recipe("sid"),
        recipe.recipe("trixie", "mta"),
        recipe.recipe("trixie", "services"),
        replace(plain, packages=(*plain.packages, "one-more")),
        replace(plain, sources=("deb http://other.example/debian trixie main",)),
    ]
    assert len({plain.key, *(one.key for one in changed)}) == 6


def test_guest_files_are_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "GUEST", tmp_path)
    keys = {recipe.recipe("trixie").key}
    (tmp_path / "file").write_text("one")
    keys.add(recipe.recipe("trixie").key)
    (tmp_path / "file").write_text("two")
    keys.add(recipe.recipe("trixie").key)
    (tmp_path / "file").chmod(0o755)
    keys.add(recipe.recipe("trixie").key)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").rename(tmp_path / "folder/file")
    keys.add(recipe.recipe("trixie").key)
    assert len(keys) == 5


def test_how_it_is_made_is_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {recipe.recipe("trixie").key}
    for name in ("MAKER", "AGENT"):
        changed = tmp_path / name
        changed.write_text(getattr(recipe, name).read_text() + "\n")
        monkeypatch.setattr(recipe, name, changed)
        keys.add(recipe.recipe("trixie").key)
    assert len(keys) == 3


@pytest.mark.parametrize(("suite", "flavour"), [("etch", "plain"), ("trixie", "sweet")])
def test_what_is_not_known_is_named_with_what_is(suite: str, flavour: str) -> None:
    with pytest.raises(RequestError, match="take one of"):
        recipe.recipe(suite, flavour)


def test_modules_come_after_what_they_need() -> None:
    text = (
        "k/ext4.ko.xz: k/jbd2.ko.xz k/crc.ko.xz\nk/jbd2.ko.xz:\nk/crc.ko.xz:\nk/virtio-blk.ko:\n"
    )
    order = image.modules(text, ("virtio_blk", "builtin", "ext4"))
    assert order == ["k/virtio-blk.ko", "k/crc.ko.xz", "k/jbd2.ko.xz", "k/ext4.ko.xz"]


ELF = b"\x7fELF" + bytes(5000) + b"the kernel"


@pytest.mark.parametrize("pack", ["xz", "zstd", "lz4 -l", "gzip"])
def test_the_kernel_in_a_bzimage_is_unpacked(tmp_path: Path, pack: str) -> None:
    """By its header; what is packed in a way that is not known (gzip) is left alone."""
    tool = pack.split()[0]
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed: make vm-setup")
    command = [*pack.split(), "-c"]
    payload = subprocess.run(command, input=ELF, stdout=subprocess.PIPE, check=True).stdout
    payload += struct.pack("<I", len(ELF))
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4  # sectors after the first
    struct.pack_into("<II", setup, 0x248, 100, len(payload))
    packed, target = tmp_path / "vmlinuz", tmp_path / "vmlinux"
    packed.write_bytes(setup + bytes(100) + payload + b"more")
    image.unpack_kernel(packed, target)
    assert target.exists() == (tool != "gzip")
    assert tool == "gzip" or target.read_bytes() == ELF
