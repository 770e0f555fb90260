"""Siemens mosaics: one MR image that shows all slices of a volume as tiles; nibabel reads their private header."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom

from meddiff.imaging.dicom_header import BoundedFile, Header, RefusedError
from meddiff.imaging.dicom_slice import Slice, classic


def mosaic(path: Path, header: Header) -> list[Slice]:
    """The tiles of a mosaic as slices of one volume; RefusedError where the private header does not tell their places."""
    sheet = classic(path, header, "MR")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nibabel's about itself, when it is imported
            from nibabel.nicom.dicomwrappers import MosaicWrapper, wrapper_from_data

            with BoundedFile(path) as file:
                found = wrapper_from_data(pydicom.dcmread(file, stop_before_pixels=True))
            if not isinstance(found, MosaicWrapper):
                raise ValueError("no number of images in the mosaic")
            rows, columns, n = map(int, found.image_shape)
            position = np.array(found.image_position, dtype=np.float64)
            step = np.array(found.slice_normal, dtype=np.float64) * float(found.voxel_sizes[2])
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:  # nibabel raises many kinds for private headers that it does not know
        raise RefusedError(
            "mosaic",
            f"It is a mosaic whose private header is unreadable ({type(e).__name__}: {e}); convert it with dcm2niix.",
        ) from e
    tiles = sheet.columns // columns if columns else 0
    if tiles < 1 or tiles * rows != sheet.rows or tiles * columns != sheet.columns or not 0 < n <= tiles**2:
        raise RefusedError(
            "mosaic",
            f"Its {n} tiles of {rows} x {columns} do not fill a sheet of {sheet.rows} x {sheet.columns}. Export it again.",
        )
    if not (np.isfinite(position).all() and np.isfinite(step).all()):
        raise RefusedError("mosaic", "Its private header does not place the tiles; convert it with dcm2niix.")
    return [
        replace(sheet, rows=rows, columns=columns, position=position + k * step, thickness=float(np.linalg.norm(step)),
                apart=(*sheet.apart, str(path)), frame=k, tiles=tiles)  # each file is a volume of its own
        for k in range(n)
    ]  # fmt: skip
