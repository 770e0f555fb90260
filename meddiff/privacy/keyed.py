"""Everything that replaces an identity: HMAC-SHA256 under the user's key, so that it repeats and cannot be tried out."""

import datetime
import hashlib
import hmac
import re
import uuid
from dataclasses import dataclass

from meddiff.data.keys import pseudonym

LARGEST_SHIFT_DAYS = 3650  # dates go back by 1 day to ten years
OLDEST_YEARS = 90  # HIPAA safe harbour: "90 or older" is one group


@dataclass(frozen=True)
class Person:
    """What one patient becomes."""

    name: str  # as `meddiff scan` names the patient under the same key
    days: int  # subtracted from every date, so that intervals stay


@dataclass(frozen=True)
class Keyed:
    """The maps of one key; the same in every process, order and number of workers."""

    key: bytes

    def __repr__(self) -> str:  # a traceback or a log must not show the key
        return "Keyed(...)"

    def person(self, patient_id: str, study_uid: str) -> Person:
        """The pseudonym and the shift of one patient; without PatientID, of one study."""
        who = patient_id.strip() or study_uid
        number = int.from_bytes(self._digest("dates", who)[:8], "big")
        return Person(pseudonym(self.key, who), 1 + number % LARGEST_SHIFT_DAYS)

    def uid(self, old: str) -> str:
        """A UID under 2.25 (PS3.5 B.2) for an old one: always the same one."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', old)[:16], version=5).int}"

    def name(self, old: str) -> str:
        """`N` and 16 hex digits for the name of a file."""
        return "N" + self._digest("name", old).hex()[:16]

    def _digest(self, purpose: str, value: str) -> bytes:
        return hmac.digest(self.key, f"meddiff {purpose}\0{value}".encode(), hashlib.sha256)


def shifted(value: str, vr: str, days: int) -> str | None:
    """A DA, DT or TM value `days` earlier; the time of day stays. None where it is no whole, valid date or time.

    >>> shifted("20240301", "DA", 1), shifted("20240301101500.5+0100", "DT", 1), shifted("1015", "TM", 1)
    ('20240229', '20240229101500.5+0100', '1015')
    """
    if vr == "TM":
        valid = re.fullmatch(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", value)
        return value if valid else None
    match = re.fullmatch(r"(\d{8})((?:\d{2}){0,3}(?:\.\d{1,6})?(?:[+-]\d{4})?)", value)
    if not match or (vr == "DA" and match[2]):
        return None
    try:
        day = datetime.datetime.strptime(match[1], "%Y%m%d") - datetime.timedelta(days)
    except (ValueError, OverflowError):
        return None
    return f"{day.year:04d}{day.month:02d}{day.day:02d}{match[2]}"


def capped_age(value: str) -> str | None:
    """An AS value, at most 090Y; None where it is none.

    >>> capped_age("093Y"), capped_age("018M"), capped_age("unknown")
    ('090Y', '018M', None)
    """
    match = re.fullmatch(r"(\d{3})([DWMY])", value)
    if not match:
        return None
    years = int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[match[2]]
    return f"{OLDEST_YEARS:03d}Y" if years > OLDEST_YEARS else value
