"""What public tools and meddiff leave of a planted file: a text, UID or date in every row of PS3.15 Table E.1-1.

    pip install --target tools --no-deps dicom-anonymizer dicognito deid
    PYTHONPATH=tools python scripts/compare_deidentifiers.py

The file is that of tests/privacy/test_canaries.py: a real CT slice, each row at the top and two deep in a sequence that stays,
and texts in the preamble, the file meta information, private attributes and overlays, and behind the pixels. Tools run with
their defaults; a tool that is not installed is left out.
"""

import importlib
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pydicom

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "privacy"))
from planted import DATE, UID_ROOT, pixels_of, planted, rows, write


def with_meddiff(source: Path, target: Path) -> None:
    from meddiff.privacy.folder import deidentify

    deidentify(source.parent, target.parent / "out", b"a key of this comparison")
    shutil.copy(next((target.parent / "out").rglob("*.dcm")), target)


def with_dicom_anonymizer(source: Path, target: Path) -> None:
    tool = importlib.import_module("dicomanonymizer.simpledicomanonymizer")
    tool.anonymize_dicom_file(
        str(source), str(target), base_rules_gen=lambda: tool.initialize_actions("dicomfields_2026c")
    )


def with_dicognito(source: Path, target: Path) -> None:
    dataset = pydicom.dcmread(source)
    importlib.import_module("dicognito.anonymizer").Anonymizer(seed="a seed").anonymize(dataset)
    dataset.save_as(target)


def with_deid(source: Path, target: Path) -> None:
    header = importlib.import_module("deid.dicom.header")
    (dataset,) = header.replace_identifiers([str(source)], save=False, remove_private=True)
    dataset.save_as(target)


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "meddiff": with_meddiff,
    "dicom-anonymizer": with_dicom_anonymizer,
    "dicognito": with_dicognito,
    "deid": with_deid,
}


def main() -> None:
    source = planted(rows())
    print(f"{'tool':18} {'texts':>6} {'UIDs':>6} {'dates':>6} {'093Y':>5} {'pixels':>9} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "in" / "a.dcm", source)
        print(f"{'(the input)':18} {line(path.read_bytes())} {'-':>9}")
        for name, tool in TOOLS.items():
            target = Path(folder) / name / "a.dcm"
            target.parent.mkdir()
            begun = time.perf_counter()
            try:
                with warnings.catch_warnings(), pydicom.config.disable_value_validation():
                    warnings.simplefilter("ignore")
                    tool(path, target)
            except ModuleNotFoundError as error:
                print(f"{name:18} not installed ({error.name})")
                continue
            seconds = time.perf_counter() - begun
            same = (pixels_of(pydicom.dcmread(target)) == pixels_of(source)).all()
            print(f"{name:18} {line(target.read_bytes())} {'same' if same else 'CHANGED':>9} {seconds:8.2f}")


def line(content: bytes) -> str:
    """How many different planted texts and UIDs, and how often the planted date and age, are in some bytes."""
    text = content.decode("latin-1")
    texts = len(set(re.findall(r"CANARY\w+", text)))
    uids = len(set(re.findall(re.escape(UID_ROOT) + r"\.[\d.]+", text)))
    return f"{texts:6} {uids:6} {text.count(DATE):6} {text.count('093Y'):5}"


if __name__ == "__main__":
    main()
