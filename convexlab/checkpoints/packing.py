"""How large a file of torch's own would be in memory."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

__all__ = ["check_packing"]


def check_packing(file: Path | IO[bytes], size: int) -> None:
    """Raise a ValueError for an archive that would be larger in memory than its ``size`` bytes: torch packs nothing."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        whole = sum(part.file_size for part in archive.infolist())
    if whole > size:
        raise ValueError(f"{whole:,} bytes packed into {size:,}")
