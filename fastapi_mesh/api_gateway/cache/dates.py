"""HTTP dates, read strictly: the three forms of RFC 9110 section 5.6.7 and nothing else."""

from __future__ import annotations

import calendar
import re
import time
from functools import lru_cache

_MONTHS = {name: number for number, name in enumerate(b"jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}
_TIME = rb"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rb"[a-z]{3}, (?P<day>\d\d) (?P<month>[a-z]{3}) (?P<year>\d{4}) " + _TIME + rb" gmt",  # IMF-fixdate
        rb"[a-z]+day, (?P<day>\d\d)-(?P<month>[a-z]{3})-(?P<year>\d\d) " + _TIME + rb" gmt",  # RFC 850
        rb"[a-z]{3} (?P<month>[a-z]{3}) (?P<day>[ \d]\d) " + _TIME + rb" (?P<year>\d{4})",  # asctime
    )
)


@lru_cache(maxsize=256)
def http_date(value: bytes) -> int | None:
    """Unix seconds, or None for what is no HTTP date (another zone, a missing comma, February 30).

    >>> http_date(b"Sun, 06 Nov 1994 08:49:37 GMT") == http_date(b"Sunday, 06-Nov-94 08:49:37 GMT") == 784111777
    True
    """
    text = value.strip()
    for form in _FORMS:
        if match := form.fullmatch(text):
            return _seconds(match)
    return None


def _seconds(match: re.Match[bytes]) -> int | None:
    month = _MONTHS.get(match["month"].lower())
    year, day, hour = int(match["year"]), int(match["day"]), int(match["hour"])
    minute, second = int(match["minute"]), int(match["second"])
    if len(match["year"]) == 2:  # more than 50 years ahead means the century before (RFC 9110 section 5.6.7)
        this_year = time.gmtime().tm_year
        year += this_year // 100 * 100
        year -= 100 if year > this_year + 50 else 0
    if month is None or year < 1 or not (0 < day <= calendar.monthrange(year, month)[1]):
        return None
    if hour > 23 or minute > 59 or second > 60:
        return None
    return calendar.timegm((year, month, day, hour, minute, second))
