"""Regions of a SEG or RTSTRUCT chosen by name: which of them become labels, and in which order.

A region is `NAME` or `NAME|OTHER|...`, whose further spellings are the same one in other files. Case does not matter.
"""

from collections.abc import Mapping, Sequence

from meddiff.errors import ManifestError


class RegionError(Exception):
    """A file does not have the regions that are asked for."""


def region_names(regions: Sequence[str]) -> dict[int, str]:
    """Label -> name, counted from 1; ManifestError where a name is empty or occurs twice.

    >>> region_names(["tumour|GTV", "liver"])
    {1: 'tumour', 2: 'liver'}
    """
    spellings = [_key(spelling) for region in regions for spelling in region.split("|")]
    for spelling in spellings:
        if not spelling or spellings.count(spelling) > 1:
            raise ManifestError(
                f"--regions: {f'{spelling!r} occurs twice' if spelling else 'a name is empty'}; give each region once, for "
                "instance 'tumour|GTV,liver'."
            )
    return {label: region.split("|")[0].strip() for label, region in enumerate(regions, 1)}


def chosen(regions: Sequence[str], there: Mapping[int, str]) -> dict[int, int]:
    """Label -> number in the file, in the order of the regions; `there` is the file's number -> name.

    RegionError where one of them is missing, as that cannot be told from another spelling, or fits several.
    """
    found = {}
    for label, region in enumerate(regions, 1):
        spellings = {_key(spelling) for spelling in region.split("|")}
        fitting = [number for number, name in there.items() if _key(name) in spellings]
        if len(fitting) != 1:
            raise RegionError(
                f"{len(fitting)} of its regions are called {region!r}, and one is needed; it has "
                f"{', '.join(there.values())}. Name another spelling in --regions (NAME|OTHER), or leave the region out."
            )
        found[label] = fitting[0]
    return found


def _key(name: str) -> str:
    return name.strip().casefold()
