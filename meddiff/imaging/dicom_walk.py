"""Little-endian data elements, one after another, in a buffer (PS3.5 section 7): which are wanted, and where the pixels begin."""

import struct
from collections.abc import Container

PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # float, double, whole numbers (PS3.3 C.7.6.24, C.7.6.3)
SHORT = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS", b"ST",
         b"TM", b"UI", b"UL", b"US"}  # fmt: skip
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # PS3.5 table 7.1-1
UNDEFINED = 0xFFFFFFFF  # length of a sequence or item that ends at a delimiter
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
DEEPEST = 16  # sequences within sequences that are walked through


def elements(
    data: bytes, position: int, *, implicit: bool, wanted: Container[int], meta: bool = False
) -> tuple[dict[int, tuple[str, bytes]], int | None]:
    """Tag -> (VR, value) of the wanted elements, and where the pixels, the end of the meta group or of the data lies.

    None for the place where anything is unusual: another order, a VR that is none, a length beyond the buffer. The VR is ""
    where the syntax is implicit.
    """
    found: dict[int, tuple[str, bytes]] = {}
    end, last = len(data), 0
    while position != end:
        if meta and data[position : position + 2] != b"\2\0":  # what follows may be implicit
            return found, position
        head = _head(data, position, implicit)
        if head is None:
            return found, None
        tag, vr, start, length = head
        if tag in PIXELS:
            return found, position
        after = _after(data, start, length, vr, implicit)
        if after is None or tag <= last:
            return found, None
        position, last = after, tag
        if tag in wanted:
            found[tag] = ("" if implicit else vr.decode("ascii"), data[start:position])
    return found, position


def _head(data: bytes, position: int, implicit: bool) -> tuple[int, bytes, int, int] | None:
    """Tag, VR, where the value starts, and its length."""
    if position + 12 > len(data):
        return None
    group, element, vr, short = struct.unpack_from("<HH2sH", data, position)
    tag = group << 16 | element
    if implicit:
        return tag, vr, position + 8, struct.unpack_from("<I", data, position + 4)[0]
    if vr in SHORT:
        return tag, vr, position + 8, short
    if vr in LONG:
        return tag, vr, position + 12, struct.unpack_from("<I", data, position + 8)[0]
    return None


def _after(data: bytes, start: int, length: int, vr: bytes, implicit: bool, depth: int = 0) -> int | None:
    """Where the value ends; a sequence of undefined length is walked through."""
    if length != UNDEFINED:
        return start + length if start + length <= len(data) else None
    if (not implicit and vr != b"SQ") or depth == DEEPEST:
        return None
    position: int | None = start
    while position is not None and position + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHI", data, position)
        position += 8
        if (tag := group << 16 | element) == SEQUENCE_END:
            return position
        if tag != ITEM:
            return None
        position = _item_end(data, position, implicit, depth) if length == UNDEFINED else position + length
    return None


def _item_end(data: bytes, position: int | None, implicit: bool, depth: int) -> int | None:
    """Behind the delimiter of an item of undefined length."""
    while position is not None and position + 8 <= len(data):
        if struct.unpack_from("<HH", data, position) == (ITEM_END >> 16, ITEM_END & 0xFFFF):
            return position + 8
        head = _head(data, position, implicit)
        if head is None:
            return None
        _, vr, start, length = head
        position = _after(data, start, length, vr, implicit, depth + 1)
    return None
