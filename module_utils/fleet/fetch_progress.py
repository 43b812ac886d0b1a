"""How far a download is, in words. Pure."""

from __future__ import annotations

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def progress_line(done_bytes: int, total_bytes: int, bytes_per_s: float) -> str:
    """One line: ``12.3 of 141.1 GB (9 %), 410 MB/s, 5 min 13 s left``."""
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if total_bytes >= scale), (1.0, "bytes"))
    digits = 1 if scale > 1 else 0
    percent = 100 * done_bytes // total_bytes if total_bytes else 100
    line = f"{done_bytes / scale:.{digits}f} of {total_bytes / scale:.{digits}f} {unit} ({percent} %)"
    if done_bytes >= total_bytes:
        return line
    if bytes_per_s <= 0:
        return f"{line}, nothing comes at the moment"
    return f"{line}, {rate_words(bytes_per_s)}, {duration_words((total_bytes - done_bytes) / bytes_per_s)} left"


def rate_words(bytes_per_s: float) -> str:
    """A rate: ``410 MB/s``."""
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if bytes_per_s >= scale), (1.0, "bytes"))
    return f"{bytes_per_s / scale:.3g} {unit}/s"


def duration_words(seconds: float) -> str:
    """A duration with its two largest units: ``2 h 5 min``, ``5 min 13 s``, ``4 s``."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
