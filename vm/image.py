"""Images: a Debian tree made by mmdebstrap, as an ext4 disk with the kernel and initrd beside it.

vm/recipe.py says what goes in; its hash names the image in the cache, so a changed recipe is another
image. No loop device and, where user namespaces allow it, no root is needed. What is half-made lies
in the cache's `building` folder and is swept later.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vm import folders, mirrors
from vm.errors import HostError
from vm.processes import Say, as_root, explain, run
from vm.recipe import (
    AGENT,
    ARCHIVE_FOLDER,
    BOOT_MODULES,
    DISK,
    EXCLUDED,
    GUEST,
    INIT,
    LATER,
    Recipe,
    recipe,
)


@dataclass(frozen=True)
class Image:
    """A finished image: disk.qcow2, vmlinuz, initrd, ssh keys and image.json in a folder."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The root file system's disk, to be used as a backing file only."""
        return self.folder / "disk.qcow2"

    @property
    def kernel(self) -> Path:
        """The kernel to boot directly: unpacked where that could be done, some seconds faster."""
        unpacked = self.folder / "vmlinux"
        return unpacked if unpacked.exists() else self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The small initrd that goes with the kernel."""
        return self.folder / "initrd"

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_blocks * 512 for file in self.folder.rglob("*"))

    @property
    def about(self) -> dict[str, Any]:
        """What image.json holds."""
        value: dict[str, Any] = json.loads((self.folder / "image.json").read_text())
        return value

    def check(self, *, thoroughly: bool = False) -> None:
        """Raise HostError when a file of it is not as it was made: by its size, or its content."""
        try:
            about = self.about
            for name, (size, digest) in about["files"].items():
                file = self.folder / name
                if file.stat().st_size != size or (thoroughly and _digest(file) != digest):
                    raise ValueError(name)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            suite, flavour, _ = f"{self.folder.name}--".split("-", 2)
            raise HostError(
                f"image {self.folder} is damaged ({error}): "
                f"python -m vm build {suite} --flavour {flavour} --fresh"
            ) from error

    @property
    def lock(self) -> Path:
        """Held, shared, by each machine that runs from this image or a state of it."""
        return self.folder / "used"

    def check_unused(self) -> None:
        """Raises VmError when a machine uses it."""
        if folders.in_use(self.lock):
            raise HostError(f"image {self.folder.name} is in use: end its machines first")


TOOLS = ("mmdebstrap", "mke2fs", "qemu-img", "cpio", "cc", "ssh-keygen")
"""What an image is made with."""


def cached() -> list[Image]:
    """All images in the cache."""
    return [Image(file.parent) for file in sorted(folders.cache().glob("images/*/image.json"))]


def build(suite: str, flavour: str = "plain", *, say: Say = print, fresh: bool = False) -> Image:
    """The image of the current recipe: from the cache, else (or when `fresh`) built.

    A second process that wants the same image waits for the first one's. Raises VmError, also
    when a running machine uses the image that a fresh one is to replace.
    """
    wanted = recipe(suite, flavour)
    image = Image(folders.own(folders.cache() / "images") / wanted.key)
    if image.folder.exists() and not fresh:
        image.check()
        return image
    turn = folders.building() / f"{wanted.key}.turn"
    busy = lambda: say(f"image {suite}: waiting for another run that makes it")
    with folders.Lock(turn, wait=True, busy=busy):
        if image.folder.exists() and not fresh:
            return image
        image.check_unused()
        with folders.workspace(wanted.key) as work:
            log = work / "log"
            try:
                _build(wanted, work, say)
            except OSError as error:
                raise HostError(explain(f"image {suite}", str(error))) from error
            finally:
                with contextlib.suppress(OSError):  # a full disk has been told of already
                    shutil.copy(log, image.folder.with_suffix(".log"))
            if image.folder.exists():
                image.check_unused()
                image.folder.rename(work / "old")
            (work / "image").rename(image.folder)
    return image


def _build(wanted: Recipe, work: Path, say: Say) -> None:
    """Make the folder `image` in a work folder."""
    begin = time.monotonic()
    tree, result, log = work / "tree", work / "image", work / "log"

    def step(text: str) -> None:
        say(f"image {wanted.suite}: {text} ({time.monotonic() - begin:.0f} s)")

    def make(*command: str | Path) -> None:
        run(f"image {wanted.suite}: {command[0]}", *command, log=log, folder=work)

    folders.check_programs_run()
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise HostError(f"missing here: {' '.join(missing)}: make vm-setup")
    log.touch()
    result.mkdir()
    step(f"installing Debian's packages from {wanted.sources[0].split()[1]}")
    make("cc", "-static", "-Os", "-s", "-o", "vm-agent", AGENT)
    make(
        *as_root(),
        "ssh-keygen",
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-C",
        wanted.key,
        "-f",
        "image/id_ed25519",
    )
    _bootstrap(wanted, _guest(work), work, step)
    step("making the disk")
    make(*as_root(), "sh", "-ec", _DISK, "sh", DISK)
    make("qemu-img", "convert", "-O", "qcow2", "raw", "image/disk.qcow2")
    _initrd(tree, work)
    make("sh", "-ec", _PACK)
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    shutil.copy(kernel, result / "vmlinuz")
    unpack_kernel(result / "vmlinuz", result / "vmlinux")
    keys = sorted((tree / "etc/ssh").glob("ssh_host_*_key.pub"))
    (result / "known_hosts").write_text("".join(f"* {key.read_text()}" for key in keys))
    files = {file.name: (file.stat().st_size, _digest(file)) for file in sorted(result.iterdir())}
    about = asdict(wanted) | {
        "files": files,
        "made": time.strftime("%FT%TZ", time.gmtime()),
        "kernel": kernel.name,
        "seconds": round(time.monotonic() - begin, 1),
    }
    (result / "image.json").write_text(json.dumps(about, indent=2) + "\n")
    make(*as_root(), "rm", "-rf", "tree")
    step("done")


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


#: What stands in /dev is the kernel's business.
_DISK = """
rm -rf tree/dev/*
truncate -s "$1" raw
mke2fs -q -t ext4 -d tree -L root -m 0 -E lazy_itable_init=1,nodiscard raw
"""
_PACK = """
cd initrd
find . | sort | cpio --quiet -o -H newc -R 0:0 --reproducible > ../image/initrd
"""


def _guest(work: Path) -> Path:
    """The guest's own files with the agent and the key among them, modes as they should be."""
    guest = work / "guest"
    shutil.copytree(GUEST, guest)
    shutil.move(work / "vm-agent", guest / "usr/local/sbin/vm-agent")
    (guest / "root/.ssh").mkdir(parents=True)
    shutil.copy(work / "image/id_ed25519.pub", guest / "root/.ssh/authorized_keys")
    for path in guest.rglob("*"):
        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    return guest


def _bootstrap(wanted: Recipe, guest: Path, work: Path, step: Say) -> None:
    """Fill the folder `tree`. Contained, so that nothing of it, no mount either, is left behind."""
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    options += [f"--aptopt={mirrors.settings(work, mirrors.mirrors().logins)}"]
    hooks = [f"copy-in {' '.join(map(str, guest.iterdir()))} /"]
    hooks += ['chroot "$1" sh /customize && rm "$1/customize"']
    if wanted.scripts:
        hooks.append(_SCRIPTS.format(" ".join(wanted.scripts)))
    if wanted.disabled:
        hooks.append(f'chroot "$1" systemctl --quiet disable {" ".join(wanted.disabled)}')
    if wanted.archive:
        names, files = " ".join(wanted.archive), " ".join(wanted.files)
        hooks.append(_ARCHIVE.format(names=names, files=files, folder=ARCHIVE_FOLDER, later=LATER))
    # It has the settings above, and with them passwords.
    options += ['--setup-hook=chmod 600 "$1/etc/apt/apt.conf.d/99mmdebstrap"']
    options += [f"--customize-hook={hook}" for hook in hooks]
    options += ["--mode=root", "--variant=minbase", f"--include={','.join(wanted.packages)}"]
    command = [*as_root(contained=True), "env", f"TMPDIR={work}", "mmdebstrap", *options]
    command += [wanted.suite, f"{work}/tree", *wanted.sources]
    try:
        run(f"image {wanted.suite}", *command, log=work / "log", say=step)
    except HostError as error:
        log = folders.cache() / "images" / f"{wanted.key}.log"
        raise HostError(f"{error} (log: {log})") from error


#: A hook of mmdebstrap, run outside of the new tree "$1" with its apt.
_SCRIPTS = """
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
mkdir "$1/scripts" && cd "$1/scripts" && apt-get download orphan-sysvinit-scripts
dpkg-deb -x orphan-*.deb . && cd usr/share/orphan-sysvinit-scripts
cp {} "$1/etc/init.d/" && rm -r "$1/scripts"
"""


#: The same. A later version's own packages need one another in that very version.
_ARCHIVE = """
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
mkdir -p "$1{folder}/partial" && cd "$1{folder}"
apt-get install --yes --download-only --reinstall -o Dir::Cache::Archives="$1{folder}" {names}
rm -rf partial lock
for name in {names}; do
    version=$(dpkg-deb -f "$name"_*.deb Version)
    dpkg-deb -R "$name"_*.deb later
    sed -i "s/$version/$version{later}/" later/DEBIAN/control
    dpkg-deb -b --root-owner-group -Zgzip later "later-$name.deb" && rm -r later
done
[ -z "{files}" ] || apt-get download {files}
for deb in *.deb; do
    dpkg-deb -f "$deb"
    echo "Filename: ./$deb"
    stat -c "Size: %s" "$deb"
    echo "SHA256: $(sha256sum < "$deb" | cut -d " " -f 1)"
    echo
done > Packages
chmod 755 . && chmod 644 *
"""


def _initrd(tree: Path, work: Path) -> None:
    """A folder `initrd`: busybox and only the modules that the root disk and the channel need."""
    root = work / "initrd"
    for folder in ("bin", "dev", "proc", "root"):
        (root / folder).mkdir(parents=True)
    shutil.copy(tree / "bin/busybox", root / "bin/busybox")
    for name in ["sh", "mount", "umount", "cat", "insmod", "sleep", "switch_root"]:
        (root / "bin" / name).symlink_to("busybox")
    (library,) = (tree / "lib/modules").iterdir()
    listed = []
    for path in modules((library / "modules.dep").read_text(), BOOT_MODULES):
        data = (library / path).read_bytes()
        name = Path(path).name.removesuffix(".xz")
        (root / name).write_bytes(lzma.decompress(data) if path.endswith(".xz") else data)
        listed.append(name)
    (root / "modules").write_text("\n".join(listed) + "\n")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)


#: How a kernel's payload is unpacked, by its first bytes.
UNPACKERS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4", b"\xfd7zX": "xz"}


def unpack_kernel(packed: Path, target: Path) -> None:
    """Write the ELF kernel inside a bzImage, which QEMU starts by its PVH entry.

    The place of the payload is in the image's header (Documentation/arch/x86/boot.rst); its last
    four bytes are the unpacked size. What is packed in another way is left alone.
    """
    data = packed.read_bytes()
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (data[0x1F1] + 1) * 512 + offset
    payload = data[start : start + length - 4]
    tool = UNPACKERS.get(payload[:4])
    if tool and shutil.which(tool):
        done = subprocess.run([tool, "-dc"], input=payload, capture_output=True, check=False)
        if done.stdout.startswith(b"\x7fELF"):
            target.write_bytes(done.stdout)


def modules(dependencies: str, wanted: tuple[str, ...]) -> list[str]:
    """Paths of kernel modules in the order to load them, from the text of modules.dep."""
    needs = dict(line.split(":", 1) for line in dependencies.splitlines() if ":" in line)
    paths = {re.sub(r"\.ko.*", "", Path(path).name).replace("-", "_"): path for path in needs}
    order: list[str] = []
    for name in wanted:
        if name not in paths:
            continue  # built into the kernel
        for path in (*reversed(needs[paths[name]].split()), paths[name]):
            if path not in order:
                order.append(path)
    return order
