"""What forbids a case, although its layout names one: grids, labels that pose as images, copies."""

from collections.abc import Mapping
from pathlib import Path

from meddiff.data.assemble import content, geometry_of
from meddiff.data.facts import Facts
from meddiff.data.layouts import Found
from meddiff.data.manifest import same_grid
from meddiff.imaging.geometry import Geometry


def problem(case: Found, facts: Mapping[Path, Facts]) -> tuple[str, str] | None:
    """Reason and detail of what forbids the case; None where nothing does."""
    for path in case.paths:
        if facts[path].error:
            return facts[path].reason, facts[path].error
    grid = geometry_of(case, facts)
    for image in case.images:
        own = facts[image.paths[0]]
        if own.geometry and not same_grid(own.geometry, grid):
            return (
                "channel-grid",
                f"{image.paths[0].name} lies on another grid than channel {case.images[0].modality}: "
                f"{_grids(own.geometry, grid)}; resample it to that grid.",
            )
        if case.geometry is None and own.values is not None:
            return (
                "label-as-image",
                f"{image.paths[0].name} holds {len(own.values)} distinct integers only, as a label "
                "map does; name it as a label map (NAME_label.nii.gz), or store the image as float32.",
            )
    return _label_problem(case, facts, grid)


def _label_problem(case: Found, facts: Mapping[Path, Facts], grid: Geometry) -> tuple[str, str] | None:
    if case.label is None:
        return None
    own = facts[case.label]
    if own.geometry is None or not same_grid(own.geometry, grid):
        return (
            "label-grid",
            f"{case.label.name} lies on another grid than its image: {_grids(own.geometry, grid)}; "
            "resample the label map to the image (nearest neighbour).",
        )
    values = own.values or frozenset()
    known = frozenset(case.labels.values()) if case.labels is not None else values
    wrong = sorted(value for value in values if value < 0 or value not in known | {0})
    if wrong:
        return (
            "label-values",
            f"{case.label.name} holds {wrong[:5]}, which the data set does not name or which are "
            "negative; correct the label map, or name them in dataset.json.",
        )
    return None


def duplicate(case: Found, facts: Mapping[Path, Facts], seen: dict[str, Path]) -> tuple[str, str] | None:
    """Copies of an image are refused, also under one patient: in two splits they leak, in one they count twice."""
    contents = {content(image, facts): image.paths[0] for image in case.images}
    for one, path in contents.items():
        if one in seen:
            return "duplicate-content", f"{path.name} has the same bytes as {seen[one]}; remove one of the two."
    seen.update(contents)
    return None


def _grids(found: Geometry | None, expected: Geometry) -> str:
    """Two grids in words that fit into a sentence."""

    def words(grid: Geometry) -> str:
        spacing = " x ".join(f"{mm:.4g}" for mm in grid.spacing_mm)
        return f"{grid.shape} voxels of {spacing} mm, {grid.orientation}, voxel 0 at {grid.affine[:3, 3].round(3).tolist()}"

    return f"{'none' if found is None else words(found)} against {words(expected)}"
