"""The one error for a full disk, wherever one is met."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from container.errors import OutOfSpace


def full_disk() -> OutOfSpace:
    return OutOfSpace("the spool directory (LONGHAUL_SPOOL_DIR) is full", code="disk_full")


@contextlib.contextmanager
def naming_a_full_disk() -> Iterator[None]:
    """Raise OutOfSpace where writing fails because the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise full_disk() from error
