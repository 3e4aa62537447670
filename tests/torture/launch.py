"""python launch.py COMMAND...: run it so that its system calls, and those of all that it starts, wait
for the supervisor's word (seccomp_unotify(2)). The supervisor takes the descriptor for that out of
this process, which stands still at execve(2) until then.
"""

from __future__ import annotations

import ctypes
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from calls import CONDITIONS, ERRORS  # type: ignore[import-not-found]

_ALLOW = 0x7FFF0000
_NOTIFY = 0x7FC00000
_NO_NEW_PRIVILEGES = 3  # enum scmp_filter_attr
_MASKED_EQ = 7  # enum scmp_compare


class _Compare(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("how", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    ]


def tell_calls() -> None:
    """From now on, this process' calls are told. Raises OSError."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(_ALLOW))
    # It would forbid set-user-ID programs inside, and nothing here may differ from a plain boot.
    library.seccomp_attr_set(context, _NO_NEW_PRIVILEGES, 0)
    for name in ERRORS:
        number = library.seccomp_syscall_resolve_name(name.encode())
        for where in CONDITIONS.get(name, [None]):
            compare = (
                _Compare(where.argument, _MASKED_EQ, where.mask, where.value) if where else None
            )
            count = 1 if where else 0
            pointer = ctypes.byref(compare) if compare else None
            failed = library.seccomp_rule_add_array(context, _NOTIFY, number, count, pointer)
            if failed and number >= 0:  # below zero: this machine does not have it
                raise OSError(-failed, f"seccomp_rule_add: {name}")
    if failed := library.seccomp_load(context):
        raise OSError(-failed, "seccomp_load")


if __name__ == "__main__":
    tell_calls()
    os.execv(sys.argv[1], sys.argv[1:])
