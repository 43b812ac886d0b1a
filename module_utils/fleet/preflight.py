"""Judges hosts by what ``playbooks/files/preflight.sh`` printed on them, before the first change to any of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .probe_verdict import Check, Verdict, blocked, degraded, ok

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MIB = 1 << 20
_GIB = 1 << 30
# Package lists and certificates bear little more; the script's answer may be a few minutes old when it is judged.
_CLOCK_TOLERATED_S = 600
# Where engines are installed.
_ENGINES = "/opt"


@dataclass(frozen=True)
class Requirements:
    """What a host must have.

    Args:
        systems: versions by the ID of /etc/os-release; ``9`` stands for 9.0 to 9.x as well.
        architectures: as ``uname -m`` prints them.
        python: the oldest version of Python that the modules run on.
        memory_bytes: of the host.
        free_bytes: by path, on every host.
        engine_free_bytes: by path, on hosts that get an engine; counts instead of ``free_bytes`` where it names a path.
        engine_version: the engine that they get; where it is installed already, it needs no more of ``/opt``.
        engine_ports: the ports that engines may listen on.
        clock_s: the controller's clock, as seconds since 1970; None leaves the hosts' clocks unjudged.
    """

    systems: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: {
            "debian": ["12", "13"],
            "ubuntu": ["22.04", "24.04"],
            "rhel": ["9"],
            "rocky": ["9"],
            "almalinux": ["9"],
        }
    )
    architectures: Sequence[str] = ("x86_64",)
    python: str = "3.10"
    memory_bytes: int = 2 * _GIB
    free_bytes: Mapping[str, int] = field(default_factory=lambda: {"/etc": 16 * _MIB, "/var/lib": _GIB})
    engine_free_bytes: Mapping[str, int] = field(default_factory=lambda: {"/opt": 10 * _GIB, "/var/lib": 5 * _GIB})
    engine_version: str = ""
    engine_ports: range = range(8100, 8200)
    clock_s: float | None = None


@dataclass(frozen=True)
class HostReport:
    """What the script printed on one host, by key. Every key can come several times.

    Args:
        values: the lines by key.
        complete: the script ran to its end.
        become_password: Ansible was given a password for sudo on this host.
        engine: the host gets an engine.
        required: what it must have.
    """

    values: Mapping[str, Sequence[str]]
    complete: bool
    become_password: bool
    engine: bool
    required: Requirements

    def first(self, key: str) -> str:
        """Return the first value of a key, or an empty text."""
        return next(iter(self.values.get(key, ())), "")


@dataclass(frozen=True)
class Row:
    """The outcome of one check on one host.

    ``status`` is ``ok``, ``degraded``, ``not used`` (a GPU), ``blocked`` (stops the run) or ``unreachable``.
    """

    host: str
    name: str
    status: str
    evidence: str
    remedy: str

    def line(self) -> str:
        """Return the row as one line that says it all."""
        return f"{self.host}: {self.name}: {self.evidence}" + (f"; {self.remedy}" if self.remedy else "")


def judge(
    texts: Mapping[str, str | None],
    required: Requirements,
    *,
    become_password_hosts: Sequence[str] = (),
    engine_hosts: Sequence[str] | None = None,
) -> list[Row]:
    """Return what every check says on every host, in the order of the hosts.

    Args:
        texts: what the script printed, by host; None for a host that could not be reached.
        required: what a host must have.
        become_password_hosts: hosts for which Ansible was given a password for sudo.
        engine_hosts: hosts that get an engine; None for all.
    """
    rows = []
    for host, text in texts.items():
        if text is None:
            remedy = "it is left out of this run, and what it serves is left as it is"
            rows.append(Row(host, "answer", "unreachable", "could not be reached", remedy))
            continue
        values, complete = parse_report(text)
        report = HostReport(
            values=values,
            complete=complete,
            become_password=host in become_password_hosts,
            engine=engine_hosts is None or host in engine_hosts,
            required=required,
        )
        # Half a report would fail every check for a reason that is not the host's.
        checks = CHECKS if complete else CHECKS[:1]
        for check in checks:
            verdict = check.judge(report)
            rows.append(Row(host, check.name, verdict.status, verdict.evidence, verdict.remedy))
    return rows


def parse_report(text: str) -> tuple[dict[str, list[str]], bool]:
    """Return the values by key, and whether the script ran to its end.

    Lines before the script's first, such as a login banner, are passed over; so are carriage returns of a terminal.
    """
    values: dict[str, list[str]] = {}
    begun = complete = False
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if not separator:
            continue
        if key == "preflight":
            begun, complete = True, value == "end"
        elif begun:
            values.setdefault(key, []).append(value)
    return values, complete


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text: one line for a host where all is well, else one for each thing that is not."""
    lines: list[tuple[str, str, str]] = [("HOST", "STATUS", "")]
    for host in dict.fromkeys(row.host for row in rows):
        own = [row for row in rows if row.host == host]
        bad = [row for row in own if row.status != "ok"]
        if bad:
            lines += [(host, row.status, row.line().removeprefix(f"{host}: ")) for row in bad]
        else:
            lines.append((host, "ok", ", ".join(row.evidence for row in own if row.name in _SUMMARY)))
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "\n".join(f"{host:<{widths[0]}}  {status:<{widths[1]}}  {words}".rstrip() for host, status, words in lines)


def _answer(report: HostReport) -> Verdict:
    if not report.complete:
        return blocked(
            "the preflight script did not run to its end",
            "log in as Ansible does and run playbooks/files/preflight.sh: the login shell must take POSIX shell",
        )
    return ok(f"as {report.first('user')}")


def _sudo(report: HostReport) -> Verdict:
    state, user = report.first("sudo"), report.first("user")
    if state == "root":
        return ok("logged in as root")
    if state == "ok":
        return ok("sudo without a password")
    if state == "missing":
        return blocked("sudo is not installed", f"install sudo and let {user} use it, or log in as root")
    if report.become_password:
        return ok("sudo with the password that was given")
    return blocked(
        f"user {user} cannot run sudo without a password", "add a NOPASSWD rule or give ansible_become_password"
    )


def _python(report: HostReport) -> Verdict:
    found = [line.split() for line in report.values.get("python", ())]
    versions = [(words[1], words[0]) for words in found if len(words) == 2]
    needed = report.required.python
    good = [version for version, _ in versions if _as_numbers(version) >= _as_numbers(needed)]
    if good:
        return ok(f"python {good[0]}")
    remedy = f"install Python {needed} or newer, or set ansible_python_interpreter to one"
    if versions:
        newest = max((version for version, _ in versions), key=_as_numbers)
        return blocked(f"python {newest} is older than {needed}", remedy)
    return blocked("no python3 was found", remedy)


def _system(report: HostReport) -> Verdict:
    name, version = report.first("os_id"), report.first("os_version_id")
    accepted = report.required.systems.get(name, ())
    if any(version == one or version.startswith(f"{one}.") for one in accepted):
        return ok(f"{name} {version}")
    supported = ", ".join(f"{known} {'/'.join(versions)}" for known, versions in report.required.systems.items())
    return blocked(f"{name or 'unknown'} {version}".strip() + " is not supported", f"use one of: {supported}")


def _systemd(report: HostReport) -> Verdict:
    if report.first("systemd") == "yes":
        return ok("systemd runs")
    return blocked(
        f"systemd does not run the host, {report.first('init') or 'something else'} does", "boot the host with systemd"
    )


def _architecture(report: HostReport) -> Verdict:
    machine = report.first("architecture")
    if machine in report.required.architectures:
        return ok(machine)
    return blocked(f"{machine} is not supported", f"use one of: {', '.join(report.required.architectures)}")


def _packages(report: HostReport) -> Verdict:
    tools = set(report.values.get("tool", ()))
    for pair in (("apt-get", "dpkg"), ("dnf", "rpm")):
        if tools.issuperset(pair):
            return ok(pair[0])
    return blocked("neither apt-get and dpkg nor dnf and rpm were found", "install the distribution's package manager")


def _memory(report: HostReport) -> Verdict:
    text = report.first("memory_kib")
    have = int(text) * 1024 if text.isdigit() else 0
    if have < report.required.memory_bytes:
        return blocked(f"{_size(have)} of memory, {_size(report.required.memory_bytes)} are needed", "add memory")
    return ok(f"{_size(have)} of memory")


def _disk(report: HostReport) -> Verdict:
    needed = dict(report.required.free_bytes)
    version = report.required.engine_version
    if report.engine:
        needed |= report.required.engine_free_bytes
        if version in report.values.get("engine", ()):
            needed[_ENGINES] = 0
    paths: dict[str, list[str]] = {}
    free: dict[str, int] = {}
    for line in report.values.get("disk", ()):
        words = line.split(" ", 3)
        if len(words) != 4 or words[0] not in needed or not words[1].isdigit():
            continue
        path, kib, mode, mount = words
        if mode == "ro":
            return blocked(f"{path} is on {mount}, which is mounted read-only", "check the disk, then remount it")
        # Paths on one file system share what is free there.
        paths.setdefault(mount, []).append(path)
        free[mount] = int(kib) * 1024
    missing = sorted(set(needed) - {path for held in paths.values() for path in held})
    if missing:
        return blocked(f"free space of {', '.join(missing)} could not be read", "run df on the host and see why")
    short = []
    for mount, held in paths.items():
        wanted = sum(needed[path] for path in held)
        if free[mount] < wanted:
            words = [f"vLLM {version} in {path}" if version and path == _ENGINES else path for path in held]
            short.append(f"{_size(free[mount])} free on {mount}, {_size(wanted)} are needed for {' and '.join(words)}")
    if short:
        return blocked(", ".join(short), "free some space, or mount a larger file system there")
    return ok(", ".join(f"{_size(free[mount])} free on {mount}" for mount in paths))


def _clock(report: HostReport) -> Verdict:
    told, own = report.first("clock"), report.required.clock_s
    if not told.isdigit() or own is None:
        return ok("not compared")
    off_s = int(told) - own
    if abs(off_s) > _CLOCK_TOLERATED_S:
        return blocked(
            f"the clock is {abs(off_s) / 60:.0f} minutes {'ahead of' if off_s > 0 else 'behind'} the controller's",
            "set it (timedatectl set-ntp true): package lists and certificates are refused otherwise",
        )
    return ok("the clock is right")


def _shm(report: HostReport) -> Verdict:
    if report.engine and report.first("shm") == "no":
        return blocked("there is no /dev/shm, which engines need", "mount a tmpfs at /dev/shm")
    return ok("there, or not needed")


def _ports(report: HostReport) -> Verdict:
    listens = {int(port) for port in report.values.get("listens", ()) if port.isdigit()}
    own = {int(port) for line in report.values.get("own_port", ()) for port in line.split() if port.isdigit()}
    taken = sorted(listens.intersection(report.required.engine_ports) - own)
    if not report.engine or not taken:
        return ok("the engines' ports are free")
    words = f"something listens on {', '.join(map(str, taken))}"
    remedy = "stop it (ss -ltnp shows what it is), or set fleet_engine_port_base"
    # Beside instances it may well be theirs; on a host without any it is in the way of the first.
    return degraded(words, remedy) if own else blocked(words, remedy)


CHECKS: tuple[Check[HostReport], ...] = (
    Check("answer", _answer),
    Check("sudo", _sudo),
    Check("python", _python),
    Check("system", _system),
    Check("systemd", _systemd),
    Check("architecture", _architecture),
    Check("packages", _packages),
    Check("memory", _memory),
    Check("disk", _disk),
    Check("clock", _clock),
    Check("shm", _shm),
    Check("engine_ports", _ports),
)
_SUMMARY = ("system", "architecture", "python", "sudo", "memory", "disk")


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _size(count_bytes: int) -> str:
    if count_bytes >= _GIB:
        return f"{count_bytes / _GIB:.1f} GiB"
    return f"{count_bytes / _MIB:.0f} MiB"
