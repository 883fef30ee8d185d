"""Sizes: bytes, counts and seconds as people write and read them."""

from __future__ import annotations

import math
import re

from beam_prep.errors import ConfigError

MB = 10**6
_SIZE = re.compile(r"^(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]?)i?b?$", re.I)


def parse_size(text: str, option: str) -> int:
    """Bytes from `8000000`, `8e6`, `64MB` or `1.5 GB`.

    Args:
      option: that it was given for.

    Raises:
      ConfigError: it is no size.
    """
    found = _SIZE.match(text.strip())
    count = float(found[1]) * 1000 ** " kmgt".index(found[2].lower() or " ") if found else 0.0
    if count < 1 or math.isinf(count):
        raise ConfigError(f"{option} {text}: not a number of bytes; give for instance 8000000, 64MB or 1GB")
    return int(count)


def size(count: float) -> str:
    """Bytes for a reader."""
    for unit, worth in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= worth:
            return f"{count / worth:.3g} {unit}" if count < 100 * worth else f"{count / worth:,.0f} {unit}"
    return f"{count:.0f} bytes"


def quantity(count: float) -> str:
    """A large number for a reader."""
    for unit, worth in (("B", 1e9), ("M", 1e6)):
        if count >= worth:
            return f"{count / worth:.3g} {unit}" if count < 100 * worth else f"{count / worth:,.0f} {unit}"
    return f"{count:,.0f}"


def duration(seconds: float) -> str:
    """Seconds for a reader."""
    if isinstance(seconds, float) and seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
