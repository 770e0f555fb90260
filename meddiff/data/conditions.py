"""What is known of each case beside its image, as a model can be conditioned on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan

import numpy as np
import torch
from torch import Tensor

from meddiff.condition_config import SPACING, Classes, GivenImage
from meddiff.config import Config, DataConfig
from meddiff.data.loader import Images
from meddiff.data.manifest import Case, Manifest
from meddiff.data.store import Store, label_names
from meddiff.data.transforms import AXES
from meddiff.errors import ManifestError
from meddiff.imaging.geometry import LETTERS


@dataclass(frozen=True)
class Known:
    """What a model can be asked for, learnt from its training cases."""

    labels: dict[str, int] = field(default_factory=dict)  # name -> number in the label maps, in the order of channels
    classes: tuple[str, ...] = ()  # the place of a name is its class
    covariates: dict[str, tuple[float, float]] = field(default_factory=dict)  # name -> mean, standard deviation


def learn(config: Config, manifest: Manifest) -> Known:
    """Labels, classes and covariates of the training cases; ManifestError where the config names what they lack."""
    cases, given = manifest.split("train"), config.condition
    names = label_names(manifest, config.data) if config.needs_labels else ()
    if given.of_label and given.of_label not in names:
        raise ManifestError(f"condition.classes.label: {given.of_label!r} is none of the labels {', '.join(names)}.")
    return Known(
        {name: cases[0].labels[name] for name in names} if cases else {},
        _classes(config, cases),
        {name: _scale(name, cases, config) for name in given.covariates},
    )


def images_of(
    config: Config,
    known: Known,
    manifest: Manifest,
    cases: Sequence[Case],
    on_case: Callable[[Case], None] | None = None,  # called for every volume prepared
) -> Images:
    """Cases with all that the config conditions on, preprocessed."""
    labels, dims = tuple(known.labels), config.network.spatial_dims
    own, *others = stores(config, labels)
    entries, given = own.prepare(manifest, cases, on_case), next(iter(others), None)
    if given:
        given.prepare(manifest, cases)
    return Images(manifest, cases, config.data, dims, entries, labels, given, told(config, known, cases))


def stores(config: Config, labels: Sequence[str]) -> list[Store]:
    """What of each case is preprocessed: its image, with a label map where there are labels, and the other image it is given."""
    given = config.condition.image
    return [Store(config.data, labels), *([Store(given_data(config.data, given))] if given else [])]


def given_data(data: DataConfig, given: GivenImage) -> DataConfig:
    """How the other image of a case is preprocessed: on the same grid, with its own intensities."""
    return data.model_copy(update={"modality": given.modality, "intensity": given.intensity})


def told(config: Config, known: Known, cases: Sequence[Case]) -> dict[str, Tensor]:
    """`class` (cases,) int64 and `covariates` (cases, V) float32, NaN where unknown, as far as the config names them.

    ManifestError for a class that no training case has.
    """
    given = config.condition
    values: dict[str, Tensor] = {}
    if given.classes and given.classes.column:
        values["class"] = torch.tensor([_class(case, given.classes, known.classes) for case in cases])
    if given.covariates:
        values["covariates"] = torch.stack([covariates(config, known, case) for case in cases])
    return values


def covariates(config: Config, known: Known, case: Case) -> Tensor:
    """The covariates of one case as the model takes them, (V,), NaN where unknown."""
    return scaled(known, {name: _value(name, case, config) for name in known.covariates})


def scaled(known: Known, values: Mapping[str, float]) -> Tensor:
    """Values by name as the model takes them, (V,); NaN for those that are not there."""
    return torch.tensor([(values.get(name, nan) - mean) / std for name, (mean, std) in known.covariates.items()])


def facts(config: Config, case: Case) -> dict[str, str]:
    """The columns of a case that the config conditions on, as a manifest holds them."""
    given = config.condition
    names = [*([given.classes.column] if given.classes and given.classes.column else []), *given.covariates]
    return {name: case.classes[name] for name in names if name in case.classes}


def _classes(config: Config, cases: Sequence[Case]) -> tuple[str, ...]:
    given = config.condition.classes
    if given is None:
        return ()
    if given.label:
        return f"no {given.label}", given.label
    if given.values:
        return given.values
    assert given.column is not None
    found = sorted({_column(case, given.column) for case in cases})
    if len(found) < 2:
        raise ManifestError(
            f"condition.classes.column: the training cases are all {', '.join(found)}; a class needs two values at least. "
            "Name another column, or leave the condition out."
        )
    return tuple(found)


def _class(case: Case, given: Classes, classes: Sequence[str]) -> int:
    assert given.column is not None
    value = _column(case, given.column)
    if value not in classes:
        lacks, mend = "no training case has", "split the data again"
        if given.values:
            lacks, mend = "condition.classes.values leaves out", "name it there"
        raise ManifestError(
            f"{case.case}: its {given.column} is {value!r}, which {lacks}; known are {', '.join(classes)}. "
            f"Remove the case, or {mend}."
        )
    return classes.index(value)


def _column(case: Case, column: str) -> str:
    if column not in case.classes:
        have = ", ".join(case.classes) or "none"
        raise ManifestError(
            f"{case.case}: has no {column!r} among its classes ({have}). Name another column with condition.classes, add "
            "it to the data set's description and scan again, or remove the case."
        )
    return case.classes[column]


def _value(name: str, case: Case, config: Config) -> float:
    """A covariate of a case in its own unit; NaN where the manifest has none."""
    if name == SPACING:
        grid = case.geometry
        return next(
            s
            for s, end in zip(grid.spacing_mm, grid.orientation, strict=True)
            if end in LETTERS[AXES[config.data.axis]]
        )
    text = case.classes.get(name, "")
    try:
        value = float(text) if text else nan
    except ValueError:
        value = np.inf
    if np.isinf(value):
        raise ManifestError(
            f"{case.case}: its {name} is {text!r}, a covariate is a number. Correct it, or leave it empty."
        )
    return value


def _scale(name: str, cases: Sequence[Case], config: Config) -> tuple[float, float]:
    """Mean and standard deviation over the training cases that have the covariate."""
    values = np.array([_value(name, case, config) for case in cases])
    values = values[np.isfinite(values)]
    if len(values) < 2 or not isfinite(spread := float(values.std())) or spread == 0:
        raise ManifestError(
            f"condition.covariates: {len(values)} of {len(cases)} training cases have a {name}, and all have the same; a "
            "covariate must differ between cases. Leave it out."
        )
    return round(float(values.mean()), 6), round(spread, 6)
