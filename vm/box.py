"""An image as a box for Vagrant's libvirt provider."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from vm import folders
from vm.image import Image
from vm.processes import Say, run
from vm.recipe import DISK

VAGRANTFILE = Path(__file__).with_name("box.Vagrantfile")


def pack(image: Image, folder: Path, *, say: Say = print) -> Path:
    """Write NAME.box into a folder, whole or not at all; an image's box is packed once.

    Root's key is in it, so it is for this user alone. Raises VmError.
    """
    version = hashlib.sha256(VAGRANTFILE.read_bytes()).hexdigest()[:6]
    target = folder / f"{image.folder.name}-{version}.box"
    if target.exists() and target.stat().st_mtime > image.disk.stat().st_mtime:
        return target
    say(f"box: packing {target}")
    folder.mkdir(parents=True, exist_ok=True)
    with folders.workspace("box") as work:
        about = {"provider": "libvirt", "format": "qcow2", "virtual_size": int(DISK.rstrip("G"))}
        (work / "metadata.json").write_text(json.dumps(about))
        shutil.copy(VAGRANTFILE, work / "Vagrantfile")
        (work / "box.img").symlink_to(image.disk)
        for name in ("vmlinuz", "initrd", "id_ed25519"):
            (work / name).symlink_to(image.folder / name)
        names = sorted(path.name for path in work.iterdir() if path.name != "lock")
        partial = target.with_suffix(f".{os.getpid()}").absolute()
        try:
            partial.touch(0o600)
            run("box", "tar", "-chf", partial, "-I", "gzip -1", *names, folder=work)
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
    return target
