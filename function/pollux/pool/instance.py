"""Names this process among those that write to a store, and tells whether another process of this machine has ended.

A name contains the machine and the process id only if all writers are on one machine. In the cloud, host names and
process ids are the same in all instances.
"""

import hashlib
import os
import platform
import secrets
from contextlib import suppress
from functools import lru_cache
from pathlib import Path


def new_name(*, one_machine: bool) -> str:
    own = secrets.token_hex(4)
    return f"{_machine()}.{os.getpid()}.{own}" if one_machine else own


def has_ended(name: str) -> bool:
    """Whether this is the name of a process of this machine that has ended."""
    machine, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    if os.name != "posix" or not number.isdecimal() or machine != _machine():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it belongs to another user
        pass
    return False


@lru_cache(maxsize=1)
def _machine() -> str:
    """Identifies where process ids are unique: this boot of the machine and this container."""
    parts = [platform.node()]
    with suppress(OSError):  # not everywhere
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
