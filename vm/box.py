"""An image as a box for Vagrant's libvirt provider."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

from vm import folders
from vm.image import Image, Say
from vm.machine import MachineError

VAGRANTFILE = Path(__file__).with_name("box.Vagrantfile")


def pack(image: Image, folder: Path, *, say: Say = print) -> Path:
    """Write NAME.box into a folder, whole or not at all; an image's box is packed once."""
    version = hashlib.sha256(VAGRANTFILE.read_bytes()).hexdigest()[:6]
    target = folder / f"{image.folder.name}-{version}.box"
    if target.exists() and target.stat().st_mtime > image.disk.stat().st_mtime:
        return target
    say(f"box: packing {target}")
    folder.mkdir(parents=True, exist_ok=True)
    work, lock = folders.claim(folders.private(folders.cache() / "building"), "box")
    try:
        size = json.loads(_output("qemu-img", "info", "--output=json", str(image.disk)))
        about = {"provider": "libvirt", "format": "qcow2"}
        gibibytes = -(-size["virtual-size"] // 2**30)
        (work / "metadata.json").write_text(json.dumps(about | {"virtual_size": gibibytes}))
        shutil.copy(VAGRANTFILE, work / "Vagrantfile")
        (work / "box.img").symlink_to(image.disk)
        for name in ("vmlinuz", "initrd", "id_ed25519"):
            (work / name).symlink_to(image.folder / name)
        names = ["metadata.json", "Vagrantfile", "box.img", "vmlinuz", "initrd", "id_ed25519"]
        pack = ["tar", "-chf", str(work / "box"), "-I", "gzip -1", "-C", str(work), *names]
        _output(*pack)
        partial = target.with_suffix(".partial")
        (work / "box").chmod(0o600)  # root's key is in it
        shutil.move(work / "box", partial)
        partial.rename(target)
    finally:
        folders.remove(work)
        lock.release()
    return target


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout
