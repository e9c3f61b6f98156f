"""Keeps a process to the folders that its run may touch, by Linux's Landlock, whatever its code and its links do.

A path that was checked may lead elsewhere when it is opened. Here the kernel looks at what is opened, and what this
process starts cannot leave either. https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import shutil
import site
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from urllib.parse import unquote, urlsplit

from limbeck.hosting.workspace import HIDDEN, hub_cache

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, the same on every architecture
_VERSION, _BENEATH, _NO_NEW_PRIVS = 1, 1, 38

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_NEW_IN = {2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}  # rights by the version of Landlock that brought them
_FIRST = (1 << 13) - 1  # the rights of version 1
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_DEVICES = (1 << 6) | (1 << 11)  # making character and block devices
_READ = READ_FILE | READ_DIR
_RUN = _READ | EXECUTE
_WRITE = (_FIRST | REFER | TRUNCATE) & ~EXECUTE & ~_DEVICES
_USE = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | IOCTL_DEV

_PROGRAMS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/nix/store")
_SYSTEM = (
    *("/proc", "/sys/devices", "/sys/bus", "/sys/class", "/sys/module", "/sys/fs/cgroup", "/sys/kernel/mm"),
    *(
        f"/etc/{name}"
        for name in (
            *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "os-release", "localtime", "timezone"),
            *("hosts", "host.conf", "resolv.conf", "nsswitch.conf", "gai.conf", "services", "protocols", "mime.types"),
            *("ssl", "pki", "ca-certificates", "ca-certificates.conf", "crypto-policies"),
            *("passwd", "group", "OpenCL", "vulkan", "nvidia"),
        )
    ),
)
_DEVICE_FILES = ("null", "zero", "full", "random", "urandom", "nvidia*", "kfd", "dri", "infiniband")
_NAMED_BY = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "LD_LIBRARY_PATH", "CUDA_HOME")


def version() -> int:
    """The version of Landlock that this kernel has; 0 where it has none."""
    return max(0, _call(_CREATE, None, 0, _VERSION)) if sys.platform == "linux" else 0


def enter(workspace: Path, read: Sequence[Path]) -> bool:
    """Keep this thread, and what it starts from now on, to its folders; False where the kernel cannot.

    It may write in `workspace` (a real path) and to devices, and read there, in `read`, and what Python, its packages
    and the system need. Its temporary and home folders are in the workspace from now on, and models of the hub come
    from the operator's cache alone. To be called before any other thread is started and before what reads the
    environment is imported. The network is not touched.
    """
    readable = [*map(str, read), *_python(), str(hub_cache())]  # before the home folder is another
    readable += [path for name in _NAMED_BY for path in os.environ.get(name, "").split(os.pathsep) if path]
    _furnish(workspace)
    known = version()
    if not known:
        return False
    handled = _FIRST | sum(right for since, right in _NEW_IN.items() if since <= known)
    rules = [(path, _RUN) for path in (*_PROGRAMS, *readable)]
    rules += [(path, _READ) for path in _SYSTEM]
    rules += [(path, _USE) for name in _DEVICE_FILES for path in glob(f"/dev/{name}")]
    rules += [("/dev/shm", _WRITE), (str(workspace), _WRITE)]
    return _restrict(handled, rules)


def _furnish(workspace: Path) -> None:
    """Folders and variables of the environment that keep libraries inside."""
    home, shelf = workspace / HIDDEN / "home", workspace / HIDDEN / "tmp"
    temporary = shelf / str(os.getpid())
    for folder in (home, temporary):
        folder.mkdir(parents=True, exist_ok=True)
    for folder in shelf.iterdir():  # what processes that were killed have left
        if not Path("/proc", folder.name).exists():
            shutil.rmtree(folder, ignore_errors=True)
    cache, base = hub_cache(), site.getuserbase()
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "HF_HOME", "TMP", "TEMP"):
        os.environ.pop(name, None)
    os.environ.pop("LIMBECK_TRUST_REMOTE_CODE", None)  # the operator's word for recipes of its own
    os.environ |= {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONUSERBASE": base}
    os.environ |= {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    tempfile.tempdir = None


def _python() -> list[str]:
    """Where the interpreter, its packages, and packages that are installed in place lie."""
    places = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, os.path.dirname(sys.executable)]
    return [*places, os.path.dirname(os.path.realpath(sys.executable)), *filter(None, sys.path), *_in_place()]


def _in_place() -> Iterator[str]:
    """Source folders of `pip install -e`, which some builders keep off sys.path."""
    for found in importlib.metadata.distributions():
        with suppress(OSError, ValueError, AttributeError):
            told = json.loads(found.read_text("direct_url.json") or "{}")
            if told.get("dir_info", {}).get("editable"):
                yield unquote(urlsplit(told["url"]).path)


def _restrict(handled: int, rules: Sequence[tuple[str, int]]) -> bool:
    # the first version of the record, which every kernel takes: what is not named in it is not restricted
    ruleset = _call(_CREATE, ctypes.byref(ctypes.c_uint64(handled)), ctypes.sizeof(ctypes.c_uint64), 0)
    if ruleset < 0:
        return False
    try:
        for path, rights in rules:
            _allow(ruleset, path, rights & handled)
        libc = _libc()
        return libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and _call(_RESTRICT, ruleset, 0) == 0
    finally:
        os.close(ruleset)


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Allow what lies at or below `path`; nothing where it is not there."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        rule = _Beneath(rights, place)
        if _call(_ADD, ruleset, _BENEATH, ctypes.byref(rule), 0) != 0:
            raise OSError(ctypes.get_errno(), "Landlock does not take a rule", path)
    finally:
        os.close(place)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    made = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return int(_libc().syscall(ctypes.c_long(number), *made))
