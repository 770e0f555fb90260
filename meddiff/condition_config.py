"""What a synthesis may be asked for: the settings of its condition."""

from typing import Annotated

from pydantic import Field, model_validator

from meddiff.intensity_config import Intensity, Percentile
from meddiff.settings import Settings

SPACING = "spacing_mm"  # the covariate that every case has


class Classes(Settings):
    """What the class of an image is: a column of the manifest's `classes`, or whether a label is to be seen in it."""

    column: str | None = None  # diagnosis, sex, site: the same for every slice of a case
    values: tuple[str, ...] | None = Field(
        None, min_length=2
    )  # of the column; those of the training cases unless given
    label: str | None = None  # the classes are then this label's name and "no " before it, image by image
    voxels: int = Field(8, ge=1)  # of the label, from which on it is to be seen; of the model's grid

    @model_validator(mode="after")
    def _is_one_kind(self) -> "Classes":
        if (self.column is None) == (self.label is None):
            raise ValueError("give either column, one of the manifest's classes, or label, one of its labels")
        if self.values is not None and (self.column is None or len(set(self.values)) < len(self.values)):
            raise ValueError(f"values = {list(self.values)} are those of column, each once")
        return self


class GivenImage(Settings):
    """Another image of each case, on the same grid."""

    modality: str  # as the manifest calls it
    intensity: Intensity = Percentile()


class ConditionConfig(Settings):
    """What is given; nothing unless set. See docs/generation.md."""

    classes: Classes | None = None
    covariates: tuple[Annotated[str, Field(min_length=1)], ...] = ()  # columns of numbers in the manifest's `classes`;
    # spacing_mm is the scan's own distance between slices
    mask: bool = False  # the label map of `data.labels`
    image: GivenImage | None = None
    drop: float = Field(0.1, ge=0, lt=1)  # share of the training images that are shown without any condition

    @property
    def of_label(self) -> str | None:
        """The label that the class is about, if it is about one."""
        return self.classes.label if self.classes else None

    @property
    def more(self) -> bool:
        """Whether anything but a class is given."""
        return bool(self.covariates or self.mask or self.image)

    @property
    def any(self) -> bool:
        """Whether anything is given."""
        return self.classes is not None or self.more
