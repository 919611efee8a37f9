"""Locks a process in: what an answer may use, and what it may see.

Everything here is best effort, layer on layer, and `layers` says which of them this machine has:

* limits (every Unix): memory, processor time, size of files, open files, processes;
* namespaces (Linux, where allowed): no network, no other process in sight, and all processes of
  the jail die with its first one;
* another user (when the press runs as root, as in a container), so that file permissions count;
* Landlock (Linux 5.13 or later): reads Python, its packages and `lib`; writes its own folder; no
  TCP, no signals to and no tracing of processes outside.

Only the standard library is imported, so that a process can be locked in at once after its fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 1, 4, 38, 36
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
FILE_BITS = 0b1100000000000111  # execute, write, read, truncate, ioctl: what a single file can have
READ_BITS = 0b1101  # execute, read a file, list a folder
USERS = range(61184, 65520)  # that no account uses (systemd keeps them for services)


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> bool:
    return sys.platform == "linux" and _libc().prctl(option, value, 0, 0, 0) == 0


def die_with_parent() -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def unreadable(yes: bool = True) -> None:
    """No process of the same user may look into this one."""
    prctl(PR_SET_DUMPABLE, 0 if yes else 1)


def limit(memory_mb: float, seconds: float, file_mb: float, processes: int | None) -> None:
    """Ceilings of the operating system on this process and its children."""
    size = virtual_memory() + int(memory_mb * 2**20)
    bounds = {
        "RLIMIT_AS": size,
        "RLIMIT_CPU": int(seconds) + 1,
        "RLIMIT_FSIZE": int(file_mb * 2**20),
        "RLIMIT_NOFILE": 128,
        "RLIMIT_CORE": 0,
    }
    if processes is not None:
        bounds["RLIMIT_NPROC"] = processes
    for name, value in bounds.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))


def virtual_memory() -> int:
    """Bytes of address space in use."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**34  # macOS counts shared libraries of the whole system


def separate(change_user: bool) -> bool:
    """Leave the network and the other processes behind; the next fork is alone in the world."""
    if sys.platform != "linux":
        return False
    libc, user, group = _libc(), os.getuid(), os.getgid()
    alone = NEWPID | NEWNET | NEWIPC
    if user == 0 and change_user and libc.unshare(alone) == 0:
        return True
    if libc.unshare(NEWUSER | alone) != 0:
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True


def become(user: int | None) -> None:
    """Be another user for good, and hold no privilege in any namespace."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if sys.platform == "linux":
        header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
        _libc().capset(header, ctypes.create_string_buffer(24))
        prctl(PR_SET_NO_NEW_PRIVS, 1)


def wall(readable: Iterable[Path | str], writable: Iterable[Path | str]) -> bool:
    """Landlock: only these folders and files from now on; False where there is none."""
    version = landlock()
    if not version:
        return False
    libc = _libc()
    bits = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    every = (1 << bits) - 1
    if version < 5:
        every &= ~(1 << 15)
    network = 0b11 if version >= 4 else 0
    scoped = 0b11 if version >= 6 else 0
    attributes = struct.pack("=QQQ", every, network, scoped)
    length = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(length), 0)
    if rules < 0:
        return False
    try:
        for paths, allowed in ((readable, READ_BITS), (writable, every)):
            for path in paths:
                try:
                    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
                except OSError:
                    continue
                folder = stat.S_ISDIR(os.fstat(handle).st_mode)
                rule = struct.pack("=Qi", allowed & every & (-1 if folder else FILE_BITS), handle)
                libc.syscall(LANDLOCK_ADD, rules, 1, rule, 0)
                os.close(handle)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        return libc.syscall(LANDLOCK_RESTRICT, rules, 0) == 0
    finally:
        os.close(rules)


def landlock() -> int:
    """The version of Landlock that this kernel offers, 0 for none."""
    if sys.platform != "linux":
        return 0
    return max(0, _libc().syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def needed(root: Path) -> list[Path]:
    """What Python has to read to import `lib` and what it uses."""
    system = ["/usr", "/lib", "/lib64", "/bin", "/etc", "/dev/urandom", "/dev/zero"]
    system += ["/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu"]
    python = [sys.prefix, sys.base_prefix, sys.exec_prefix]
    python += [p for p in sys.path if p.endswith(("site-packages", "dist-packages", "lib-dynload"))]
    data = [os.environ["BOOK_DATA"]] if os.environ.get("BOOK_DATA") else []
    return [Path(p) for p in [*system, *python, *data, root / "lib"]]


def others_may_read(paths: Iterable[Path]) -> bool:
    """Whether a user without rights can enter these folders."""
    for path in paths:
        if not path.exists():
            continue
        for folder in (path.resolve(), *path.resolve().parents):
            if not folder.stat().st_mode & stat.S_IXOTH:
                return False
    return True


def layers(root: Path) -> list[str]:
    """What will hold an answer on this machine, in words."""
    found = ["limits"]
    if sys.platform == "linux":
        user = changes_user(root)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if separate(user) else 1)
        if os.waitpid(pid, 0)[1] == 0:
            found.append("no network, no other process in sight")
        if user:
            found.append("a user without rights")
        if landlock():
            found.append("Landlock")
    return found


def changes_user(root: Path) -> bool:
    """Whether answers can run as a user of their own."""
    if not hasattr(os, "getuid") or os.getuid() != 0:
        return False
    return others_may_read([Path(sys.prefix), Path(sys.base_prefix), root / "lib"])
