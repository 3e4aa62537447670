"""A configuration's text: what counts, what is warned about, what is refused (overlay-boot(8), CONFIGURATION FILE)."""

import os
from pathlib import Path

import pytest

from overlay_boot import ConfigError
from overlay_boot.config import ConfigFile
from overlay_boot.subhost import VARIABLES, Subhost
from overlay_boot.waiting import Waiter
from spec.clauses import NEEDS_TEST, clauses
from tests.mutants.__main__ import load


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("root", "work", "live"):
        (tmp_path / name).mkdir()
    return tmp_path


def read(base: Path, text: str | bytes, name: str = "some.conf") -> ConfigFile:
    path = base / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o644)
    return ConfigFile(str(path))


def resolve(made: ConfigFile) -> Subhost:
    return made.resolve(made.run(Waiter()))


HOOKS = "INIT=/bin/true\nPREMOUNT=/bin/true\nPOSTMOUNT=/bin/true\n"


def refused(base: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(base, HOOKS + text).check()
    return str(caught.value)


def test_every_default_is_the_pages(base: Path) -> None:
    subhost = read(base, HOOKS + "BASE=.").check()
    assert set(subhost.texts) == set(VARIABLES) and len(VARIABLES) == 15
    assert {
        k: v for k, v in subhost.texts.items() if k not in ("INIT", "PREMOUNT", "POSTMOUNT")
    } == {
        "NAME": "some",
        "BASE": str(base),
        "CABLES": "",
        "CAPABILITY": "",
        "LIVE": f"{base}/live",
        "LOG": "/tmp/overlay-some.log",
        "LOWER": "/",
        "RAM_SIZE": "50M",
        "SHARE": "",
        "START": "networking ssh",
        "UPPER": f"{base}/root",
        "WORK": f"{base}/work",
    }


def test_values_are_trimmed_and_otherwise_taken_as_they_are(base: Path) -> None:
    odd = "a $HOME 'x' \\ ;,:é"
    (base / odd).mkdir()
    (base / "#root").mkdir()
    subhost = read(base, HOOKS + f"BASE= \t. \r\nUPPER=  {odd}  \nLOWER=#root\nLOWER=root").check()
    assert (subhost.base, subhost.upper) == (str(base), f"{base}/{odd}")
    assert subhost.lower == f"{base}/#root"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("LOWR=base", "did you mean LOWER?"),
        (" UPPER=x", "UPPER must stand at the start of the line"),
        ("BASE =x", "BASE must stand at the start of the line"),
        ("start=none", "did you mean START?"),
        ("export FOO=1", "not an assignment"),
        ("gibberish", "not an assignment"),
        ("BASE=other", "BASE is assigned already at line 1, which counts"),
    ],
)
def test_a_line_that_does_not_count_is_warned_about_once(base: Path, line: str, hint: str) -> None:
    made = read(base, f"BASE=.\n# a comment\n\n  # another\n{line}\n")
    assert len(made.warnings) == 1
    assert (
        made.warnings[0].startswith(f"{base}/some.conf:5: warning: ignored: ")
        and hint in made.warnings[0]
    )
    assert made.assigned["BASE"].text == "."


def test_share_collects_all_its_lines(base: Path) -> None:
    made = read(base, "BASE=.\nSHARE=/etc\nSHARE= /usr:/host/usr\nSHARE=/a:b\n")
    assert [(s.source, s.target, s.under_lower) for s in made.shares] == [
        ("/etc", "/etc", True),
        ("/usr", "/host/usr", False),
        ("/a:b", "/a:b", True),
    ]
    assert not made.warnings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "BASE is missing"),
        ("BASE=nowhere", "BASE: {base}/nowhere: No such file or directory"),
        ("BASE=.\nLIVE=x.conf", "LIVE: {base}/x.conf is not a directory"),
        ("BASE=.\nUPPER=nowhere", "UPPER: {base}/nowhere: No such file"),
        ("BASE=.\nWORK=root/work", "lie inside one another"),
        ("BASE=.\nWORK=root", "lie inside one another"),
        ("BASE=.\nLIVE=root", "LIVE: {base}/root is UPPER or LOWER too"),
        ("BASE=.\nNAME=thirteen_long", "NAME: 'thirteen_long' has 13 characters"),
        ("BASE=.\nNAME=a/b", "printable ASCII characters without spaces or /"),
        ("BASE=.\nNAME=a b", "printable ASCII characters without spaces or /"),
        ("BASE=.\nNAME=é", "printable ASCII characters"),
        ("BASE=.\nNAME=-x", "must not start with - or ."),
        ("BASE=.\nCABLES=br0", "'br0': it has no ="),
        ("BASE=.\nCABLES= =0:1:2", "six pairs"),
        ("BASE=.\nCABLES= =01:00:00:00:00:01", "first pair must be even"),
        ("BASE=.\nCABLES= =.302", "no cable stands before it"),
        ("BASE=.\nCABLES= = =.0", "a number from 1 to 4095"),
        ("BASE=.\nCABLES= = =.4096", "a number from 1 to 4095"),
        ("BASE=.\nCABLES= = =.x", "a number from 1 to 4095"),
        ("BASE=.\nCABLES= = =.4095", "802.1Q reserves"),
        ("BASE=.\nCABLES= = =.7 =.7", "some0.7 is declared twice"),
        ("BASE=.\nNAME=twelve_chars\nCABLES= = =.30", "twelve_chars0.30 has 16 characters"),
        ("BASE=.\nRAM_SIZE=lots", "RAM_SIZE: 'lots' is not a size"),
        ("BASE=.\nRAM_SIZE=" + "9" * 5000, "is not a size"),
        ("BASE=.\nCABLES= = =." + "9" * 5000, "a number from 1 to 4095"),
        ("BASE=.\nCABLES=" + " =" * 100000, "100000 cables are more than 1024"),
        ("BASE=.\nSHARE=/.", "would hide the subhost's whole root"),
        ("BASE=.\nSHARE=/..", "would hide the subhost's whole root"),
        ("BASE=.\nSHARE=//x/..", "would hide the subhost's whole root"),
        ("BASE=.\nSHARE=/etc:/x/../.", "would hide the subhost's whole root"),
        ("BASE=.\nRAM_SIZE=0", "RAM_SIZE: '0' is not a size"),
        ("BASE=.\nSHARE=etc", "SHARE: 'etc' is not an absolute path"),
        ("BASE=.\nSHARE=/no/such", "SHARE: /no/such below LOWER /: No such file"),
        ("BASE=.\nSHARE=!echo /etc", "is not an absolute path"),
    ],
)
def test_a_mistake_is_one_line(base: Path, text: str, message: str) -> None:
    (base / "x.conf").touch()
    (base / "root/work").mkdir()
    said = refused(base, text)
    assert "\n" not in said and said.startswith(f"{base}/some.conf:")
    assert message.format(base=base) in said


def test_hooks_must_be_executables(base: Path) -> None:
    (base / "hook").touch()
    with pytest.raises(ConfigError) as caught:
        read(base, "BASE=.\nINIT=hook x\nPREMOUNT=nothing\nPOSTMOUNT=/bin/true").check()
    first, second = str(caught.value).split("\n")
    assert f":2: INIT: {base}/hook is not executable: chmod +x {base}/hook" in first
    assert f":3: PREMOUNT: {base}/nothing is not there" in second


def test_all_mistakes_are_reported_together_in_the_files_order(base: Path) -> None:
    said = refused(base, "RAM_SIZE=x\nBASE=.\nLIVE=a\nCABLES=b c\nNAME=/")
    assert [line.split(": ")[1] for line in said.split("\n")] == [
        "RAM_SIZE",
        "LIVE",
        "CABLES",
        "CABLES",
        "NAME",
    ]


def test_unreadable_text_is_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration: No such file"):
        ConfigFile(str(base / "none.conf"))
    with pytest.raises(ConfigError, match=":2: not UTF-8 text"):
        read(base, b"BASE=.\nUPPER=\xff\n")
    with pytest.raises(ConfigError, match=":1: a zero byte"):
        read(base, b"BASE=\0\n")


def test_a_file_that_everyone_may_write_is_refused(base: Path) -> None:
    (base / "some.conf").write_text("BASE=.")
    (base / "some.conf").chmod(0o666)
    with pytest.raises(ConfigError, match=r"chmod o-w .*some\.conf"):
        ConfigFile(str(base / "some.conf"))


@pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")
def test_a_file_of_another_user_is_warned_about(base: Path) -> None:
    (base / "some.conf").write_text("BASE=.")
    os.chown(base / "some.conf", 1234, 0)
    assert "belongs to user id 1234" in ConfigFile(str(base / "some.conf")).warnings[0]


def test_commands_run_once_in_base_and_give_their_first_line(base: Path) -> None:
    (base / "deep").mkdir()
    for name in ("root", "work", "live"):
        (base / "deep" / name).mkdir()
    made = read(
        base,
        HOOKS
        + "BASE=!echo ran >> count; pwd >&2; echo deep\n"
        + "LOWER=! echo ran >> count; echo '  root '; echo more\n"
        + "START=!echo $ACTION $CONFIG\nLIVE=live\n",
    )
    assert made.check().texts["LOWER"].startswith("!")  # unevaluated values are passed over
    subhost = resolve(made)
    assert subhost.base == f"{base}/deep"
    assert subhost.lower == f"{base}/deep/root" and subhost.root_kind == "bind"
    assert subhost.start == ["overlay-boot", f"{base}/some.conf"]
    assert (base / "count").read_text() == (base / "deep/count").read_text() == "ran\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("exit 3", "failed: exit 3 (exit status 3)"),
        ("true", "printed no value: true (exit status 0)"),
        ("printf 'a\\0b'", "printed a zero byte: printf 'a\\0b' (exit status 0)"),
    ],
)
def test_a_command_without_a_value_is_an_error(base: Path, command: str, said: str) -> None:
    made = read(base, f"BASE=.\n\nLOWER=!{command}")
    with pytest.raises(ConfigError) as caught:
        resolve(made)
    assert str(caught.value) == f"{base}/some.conf:3: LOWER: the command {said}"


@pytest.fixture
def any_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bridges need not be there."""
    monkeypatch.setattr("overlay_boot.check.bridges", lambda subhost: ())


@pytest.mark.usefixtures("any_bridge")
def test_cables_are_named_and_numbered(base: Path) -> None:
    text = HOOKS + "BASE=.\nCABLES= = br0=.302 =.7 br1=02:00:00:00:00:0A\t="
    cables = read(base, text).check().cables
    assert [(c.host, c.peer, c.bridge, c.mac, c.tag, c.carrier) for c in cables] == [
        ("some0", "eth0", "", "", 0, ""),
        ("some0.302", "", "br0", "", 302, "some0"),
        ("some0.7", "", "", "", 7, "some0"),
        ("some1", "eth1", "br1", "02:00:00:00:00:0a", 0, ""),
        ("some2", "eth2", "", "", 0, ""),
    ]


@pytest.mark.parametrize(
    ("variable", "printed", "text"),
    [
        ("NAME", "!touch ran", "'!touch ran': use printable ASCII characters without spaces"),
        ("RAM_SIZE", "!lots", "RAM_SIZE: '!lots' is not a size"),
        ("LIVE", "!live", "LIVE: {base}/!live: No such file"),
        ("CABLES", "!=", ""),
    ],
)
@pytest.mark.usefixtures("any_bridge")
def test_what_a_command_printed_is_a_value_and_nothing_else(
    base: Path, variable: str, printed: str, text: str
) -> None:
    """Also where it begins with an exclamation mark: it is checked, and never run."""
    made = read(base, HOOKS + f"BASE=.\n{variable}=!echo '{printed}'\n")
    if not text:
        assert [cable.bridge for cable in resolve(made).cables] == ["!"]
        return
    with pytest.raises(ConfigError) as caught:
        resolve(made)
    assert text.format(base=base) in str(caught.value)
    assert not (base / "ran").exists()


def test_a_path_from_a_command_need_not_be_utf_8(base: Path) -> None:
    os.mkdir(os.fsencode(base) + b"/\xff")
    made = read(base, HOOKS + "BASE=.\nUPPER=!printf '\\377'\n")
    assert os.fsencode(resolve(made).upper) == os.fsencode(base) + b"/\xff"


def test_a_configuration_is_a_regular_file(base: Path) -> None:
    os.mkfifo(base / "fifo.conf")
    for path in (base / "fifo.conf", base, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="regular file|Is a directory"):
            ConfigFile(str(path))


def test_many_mistakes_of_one_variable_are_not_all_told(base: Path) -> None:
    said = refused(base, "BASE=.\nCABLES=" + " x" * 1000).split("\n")
    assert len(said) == 11 and "and 990 more mistakes" in said[-1]


def test_the_table_of_the_readme_is_that_of_the_variables() -> None:
    """Each variable has a row, and each default is the one that counts."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    table: dict[str, str] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and cells[0].startswith("`") and cells[0][1:2].isupper():
            names, defaults = (cell.replace("`", "").split(", ") for cell in cells[:2])
            table |= dict(zip(names, defaults, strict=True))
    told = {"NAME": "the file's name without .conf", "LOG": "/tmp/overlay-NAME.log"}
    assert table == {name: told.get(name, row.default) for name, row in VARIABLES.items()}


def test_each_variable_is_on_the_page_with_its_default_a_test_and_a_fault() -> None:
    """`python -m spec check` holds each clause to have its test; here each variable has a clause."""
    page = [clause for clause in clauses().values() if clause.page == "overlay-boot.8"]
    own = {name: [clause for clause in page if clause.topic == name] for name in VARIABLES}
    listed = {clause.topic for clause in page if clause.section == "VARIABLES"}
    assert {name for name in listed if name.isupper()} == set(VARIABLES)
    faulty = {name for fault in load() for name in fault.clauses}
    for name, row in VARIABLES.items():
        tested = {c.id for c in own[name] if c.level in NEEDS_TEST and not c.untested}
        assert tested & faulty, f"{name} has no clause with a test and a fault"
        told = [c.sentence for c in own[name] if c.level == "default" and "ours" in c.pages]
        assert not row.default or any(row.default in text for text in told), name
