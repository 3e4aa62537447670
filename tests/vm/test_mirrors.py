"""Which of apt's sources are Debian's mirrors, asked of the real apt with sources of its own, and
where the passwords of their addresses get to."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.vm.conftest import SUITE
from vm import cache, cli, folders, image, mirrors, recipe
from vm.errors import HostError
from vm.mirrors import Mirrors

RELEASE = "Origin: {}\nLabel: {}\nSuite: x\nCodename: {}\nDate: Mon, 01 Jan 2024 00:00:00 UTC\n"
Apt = Callable[..., None]


@pytest.fixture
def apt(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    """Gives apt these sources, and configuration beside; its lists are empty, as in a container."""
    monkeypatch.delenv("MIRROR", raising=False)
    folder = own_folders / "apt"
    (folder / "lists/partial").mkdir(parents=True)
    configuration = [
        f'Dir::Etc::sourcelist "{folder}/sources.list"; Dir::Etc::sourceparts "/dev/null";',
        f'Dir::State::lists "{folder}/lists"; Dir::Etc::netrc "{folder}/auth.conf";',
        'Dir::Etc::netrcparts "/dev/null"; #clear Acquire;',
    ]

    def set_up(*sources: str, more: str = "") -> None:
        (folder / "sources.list").write_text("\n".join(sources) + "\n")
        (folder / "apt.conf").write_text("\n".join([*configuration, more]))
        monkeypatch.setenv("APT_CONFIG", str(folder / "apt.conf"))

    return set_up


def archive(folder: Path, suite: str, origin: str, label: str) -> str:
    """A source line for an archive of nothing but a Release file."""
    (folder / "dists" / suite).mkdir(parents=True)
    (folder / "dists" / suite / "Release").write_text(RELEASE.format(origin, label, suite))
    return f"deb [trusted=yes] file:{folder} {suite} main"


def test_lists_that_are_empty_are_no_lack_of_mirrors(apt: Apt, tmp_path: Path) -> None:
    """And a third party whose suite and path are called as Debian's is none, though it is first."""
    apt(
        archive(tmp_path / "vendor/debian", "bookworm", "Docker", "Docker CE"),
        "deb [trusted=yes] file:/nowhere/flat ./",
        archive(tmp_path / "backports", "bookworm-backports", "Debian", "Debian Backports"),
        archive(tmp_path / "main", "bookworm", "Debian", "Debian"),
        archive(tmp_path / "security", "bookworm-security", "Debian", "Debian-Security"),
    )
    main, security = f"file:{tmp_path}/main", f"file:{tmp_path}/security"
    assert mirrors.mirrors() == Mirrors(main, security)
    assert recipe.recipe("trixie").sources == (
        f"deb {main} trixie main",
        f"deb {main} trixie-updates main",
        f"deb {security} trixie-security main",
    )
    assert recipe.recipe("sid").sources == (f"deb {main} sid main",)


def test_this_machines_hooks_are_not_run(apt: Apt, tmp_path: Path) -> None:
    """Where only its sources are read."""
    apt(
        archive(tmp_path / "debian", "bookworm", "Debian", "Debian"),
        more=f'APT::Update::Post-Invoke {{"touch {tmp_path}/ran";}};\n'
        'APT::Update::Post-Invoke-Success {"false";};\nAPT::Default-Release "stable";',
    )
    assert mirrors.mirrors().main == f"file:{tmp_path}/debian"
    assert not (tmp_path / "ran").exists()


def test_what_apt_has_fetched_is_not_fetched_again(
    apt: Apt, own_folders: Path, tmp_path: Path
) -> None:
    """Nor what this harness has: a machine without a network works on."""
    apt(
        "deb http://vendor.invalid/debian trixie main",
        "deb http://mirror.invalid/any trixie main",
        "deb http://mirror.invalid/sec trixie-security main",
    )
    with pytest.raises(HostError, match="^apt's sources: the mirror cannot be reached"):
        mirrors.mirrors()
    for lists in (own_folders / "apt/lists", own_folders / "cache/packages/mirrors/lists"):
        for name, origin, label in (
            ("vendor.invalid_debian_dists_trixie_InRelease", "Docker", "Docker"),
            ("mirror.invalid_any_dists_trixie_InRelease", "Debian", "Debian"),
            ("mirror.invalid_sec_dists_trixie-security_Release", "Debian", "Debian-Security"),
        ):
            (lists / name).write_text(RELEASE.format(origin, label, "trixie"))
        assert mirrors.mirrors() == Mirrors(
            "http://mirror.invalid/any", "http://mirror.invalid/sec"
        )
        for file in lists.glob("*Release"):
            file.unlink()


def test_one_source_that_fails_does_not_hide_debians(apt: Apt, tmp_path: Path) -> None:
    broken = "deb [trusted=yes] file:/nowhere trixie main"
    apt(broken, archive(tmp_path / "main", "trixie", "Debian", "Debian"))
    assert mirrors.mirrors() == Mirrors(f"file:{tmp_path}/main")


@pytest.mark.parametrize("sources", [[], ["vendor"]])
def test_no_mirror_is_said(apt: Apt, tmp_path: Path, sources: list[str]) -> None:
    apt(*[archive(tmp_path / name, "trixie", "Docker", "Docker") for name in sources])
    with pytest.raises(HostError, match="name no Debian mirror: add one, or set MIRROR="):
        mirrors.mirrors()


def test_no_apt_and_apt_that_fails_are_said(apt: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    apt("deb what")
    with pytest.raises(HostError, match="^apt's sources: E: Malformed entry 1"):
        mirrors.mirrors()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError, match="no apt here.*MIRROR="):
        mirrors.mirrors()


def test_what_is_cached_is_shown_and_cleared_without_a_mirror(
    apt: Apt, own_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image of today's recipe stays, whatever mirror it was made with."""
    apt()
    stem = recipe.plan("trixie").stem
    for name in (f"{stem}1234", "trixie-plain-of-before"):
        (own_folders / "cache/images" / name).mkdir(parents=True)
        (own_folders / "cache/images" / name / "image.json").write_text("{}")
    (own_folders / "cache/.claims").touch()
    assert cli.main(["list"]) == 0
    assert cli.main(["prune"]) == 0
    assert capsys.readouterr().err == ""
    assert [one.path.name for one in cache.items()] == [f"{stem}1234"]


SECRET = "p%40ss/w%C3%B6rd".replace("/", "%2F")


@pytest.mark.parametrize("named", [True, False], ids=["MIRROR", "apt"])
def test_a_password_is_nowhere_but_in_a_file_of_its_own(
    apt: Apt, own_folders: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    lists = own_folders / "apt/lists"
    apt(f"deb http://me:{'secret' if not named else 'x'}@a.invalid:81/deb trixie main")
    (lists / "a.invalid:81_deb_dists_trixie_InRelease").write_text(
        RELEASE.format("Debian", "Debian", "trixie")
    )
    if named:
        monkeypatch.setenv("MIRROR", f"http://me:{SECRET}@a.invalid:81/deb")
    known = mirrors.mirrors()
    assert known.main == "http://a.invalid:81/deb"
    password = "p@ss/wörd" if named else "secret"
    assert known.logins == (f"machine http://a.invalid:81/deb/ login me password {password}",)
    made = recipe.recipe("trixie")
    assert made.sources[0] == "deb http://a.invalid:81/deb trixie main"
    file = mirrors.settings(own_folders, known.logins)
    assert file.stat().st_mode & 0o777 == 0o600 and password not in file.read_text()
    secret = own_folders / "auth.conf"
    assert f'Dir::Etc::netrc "{secret}";' in file.read_text()
    assert secret.stat().st_mode & 0o777 == 0o600 and password in secret.read_text()


def test_apts_way_to_the_mirrors_is_the_builds(apt: Apt, own_folders: Path) -> None:
    """All of it, whatever the option is called; what it does with the lists is its own affair."""
    wanted = [
        'Acquire::https::CaInfo "/etc/ssl/own.pem";',
        'Acquire::https::mirror.example::SslCert "/etc/ssl/client.pem";',
        'Acquire::ForceIPv4 "true";',
        'Acquire::http::Timeout "7";',
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'Acquire::http::Proxy::mirror.example "DIRECT";',
        'Acquire::Retries "9";',
        'Acquire::Check-Valid-Until "false";',
        'Acquire::tor::Proxy "socks5h://localhost:9050";',
    ]
    other = ['Acquire::Languages "none";', 'Acquire::GzipIndexes "true";']
    apt(more="\n".join([*wanted, *other]))
    (own_folders / "apt/auth.conf").write_text("machine b.invalid login you password own\n")
    written = mirrors.settings(own_folders, ()).read_text().splitlines()
    assert set(wanted) <= set(written) and not set(other) & set(written)
    assert "password own" in (own_folders / "auth.conf").read_text()


def test_a_password_that_apt_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR", "http://me:a%20b@a.invalid/debian")
    with pytest.raises(HostError, match="a.invalid: apt takes no blank") as caught:
        mirrors.mirrors()
    assert "a b" not in str(caught.value) and os.environ["MIRROR"] not in str(caught.value)


class Guarded(BaseHTTPRequestHandler):
    """A mirror that wants a password, in front of the one that this machine has."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    login = base64.b64encode("me:s3cr3t-wörd".encode()).decode()

    def do_GET(self) -> None:
        """Refuse, or hand on."""
        status, data = 401, b""
        if self.headers.get("Authorization") == f"Basic {self.login}":
            try:
                with urllib.request.urlopen(self.upstream + self.path) as answer:
                    status, data = 200, answer.read()
            except urllib.error.HTTPError as error:
                status = error.code
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.vm
def test_an_image_is_made_with_passwords_and_has_none(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those of the mirror and of a proxy, nor paths of this machine; what else apt is told stays."""
    Guarded.upstream = mirrors.mirrors().main
    (own_folders / "apt.conf").write_text(
        'Acquire::http::Proxy::other.invalid "http://you:pr0xy-p4ss@127.0.0.1:9";\n'
        'Acquire::https::CaInfo "/etc/ssl/certs/own.pem"; Acquire::http::Timeout "33";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(own_folders / "apt.conf"))
    said: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        Thread(target=server.serve_forever).start()
        try:
            place = f"127.0.0.1:{server.server_port}"
            monkeypatch.setenv("MIRROR", f"http://me:s3cr3t-w%C3%B6rd@{place}")
            made = image.build(SUITE, say=said.append)
        finally:
            server.shutdown()
    assert any(place in line for line in said) and not any("s3cr3t" in line for line in said)
    secrets = ["grep", "-rlaE", "s3cr3t|pr0xy-p4ss", folders.cache()]
    assert subprocess.run(secrets, stdout=subprocess.PIPE, check=False).stdout == b""
    subprocess.run(["qemu-img", "convert", "-O", "raw", made.disk, tmp_path / "raw"], check=True)
    show = ["debugfs", "-R", "cat /etc/apt/apt.conf.d/99mmdebstrap", tmp_path / "raw"]
    left = subprocess.run(show, capture_output=True, check=True).stdout.decode()
    assert 'Acquire::http::Timeout "33";' in left
    assert not re.search('@|"/|netrc', left)
