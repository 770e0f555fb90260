"""The errors a user can cause, all under one base so that the command line can tell them from our own failures.

Each message names the file or key, what was found, what was expected and what to do next.
"""


class MeddiffError(Exception):
    """Base of every error that input can cause; the command line shows its message and exits with 2."""


class ConfigError(MeddiffError):
    """A setting is unknown, missing, or cannot be right."""


class ManifestError(MeddiffError):
    """A manifest or a case in it is inconsistent, or its files changed since the scan."""


class CaseError(ManifestError):
    """One case cannot be read, while the others may be; `case` is its name."""

    def __init__(self, message: str, case: str = "") -> None:
        super().__init__(message)
        self.case = case


class ImageError(MeddiffError):
    """A file cannot be read as the image it claims to be."""


class DicomError(ImageError):
    """A DICOM file or series cannot be turned into a volume without guessing."""


class NiftiError(ImageError):
    """A NIfTI file is damaged or contradicts itself."""


class GeometryError(MeddiffError):
    """An affine, a shape or two grids that should agree do not."""


class MetricError(MeddiffError):
    """A number of the evaluation cannot be computed from what was given, or would not mean anything."""


class NetworkError(MeddiffError):
    """A network cannot be built, or cannot take an input or weights of this shape."""


class RunError(MeddiffError):
    """A run folder is missing, damaged, or belongs to something else."""


class PrivacyError(MeddiffError):
    """Something would leave with an identity, or cannot be de-identified as asked."""


class Stopped(BaseException):
    """A signal asked the process to end, and it left everything in order; exit code 143.

    Not an Exception, so that nothing on the way takes it for a failure.
    """
