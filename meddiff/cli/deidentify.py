"""`meddiff deidentify`: a folder of scans without identity."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from meddiff.cli.console import Quiet, begin, progress, tell
from meddiff.errors import PrivacyError


def command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder with DICOM and NIfTI files, at any depth.")],
    output: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write, new or empty, not inside SRC.")],
    key: Annotated[
        Path | None, typer.Option(help="Key of pseudonyms, UIDs and dates; made if it is not there. Keep it secret.")
    ] = None,
    retain_device: Annotated[bool, typer.Option(help="Keep scanner model, serial number and station name.")] = False,
    strip_face: Annotated[bool, typer.Option(help="Remove the face of head CT and MR. No anonymity follows.")] = False,
    ocr: Annotated[bool, typer.Option(help="Also look for text in the pixels, with tesseract.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")] = 1,
    quarantined: Annotated[
        Path | None,
        typer.Option(help="Write paths and reasons of the files left behind, .jsonl, readable by you only."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Copy scans without the patients' identity: an allow-list after DICOM PS3.15 Annex E, new UIDs, shifted dates.

    What cannot be cleaned stays behind, listed by its number in the sorted list of files, as names of files name people.
    DST/audit.json counts what was done and holds no identity. Exit code 1 where files stayed behind.

    Example: `meddiff deidentify /data/ct /data/ct_clean --key ~/.config/meddiff/pseudonym.key --workers 4`
    """
    begin(quiet)
    from meddiff.data.keys import default_key_path, load_key
    from meddiff.privacy.folder import Options, check_folders, deidentify

    if key is None:
        raise PrivacyError(
            "deidentify: no key was given. New UIDs, pseudonyms and dates follow from a secret key, so that a later run gives "
            f"the same; name its file with `--key FILE`, outside the output. It is made if it is not there; `meddiff scan` "
            f"uses {default_key_path()}."
        )
    check_folders(source, output, key)
    if quarantined is not None and quarantined.resolve().is_relative_to(output.resolve()):
        raise PrivacyError(f"{quarantined}: the list names files, and so people. Write it outside the output.")
    with progress(quiet) as bar:
        task = bar.add_task("Files", total=None, note="")
        behind = deidentify(
            source,
            output,
            load_key(key),
            Options(retain_device, strip_face, ocr),
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if quarantined is not None:
        lines = (
            json.dumps({"number": o.number, "path": str(o.path), "reason": o.reason, "detail": o.detail})
            for o in behind
        )
        _write_private(quarantined, "".join(line + "\n" for line in lines))
    audit = json.loads((output / "audit.json").read_text(encoding="utf-8"))
    tell.print(
        f"{audit['files']['written']} of {audit['files']['read']} files in {output}; what was done is in audit.json there",
        highlight=False,
    )
    if behind:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(one.reason for one in behind).most_common())
        tell.print(f"{len(behind)} files stayed behind ({reasons}):", highlight=False)
        alike: dict[tuple[str, str], list[int]] = defaultdict(list)
        for one in behind:
            alike[one.reason, one.detail].append(one.number)
        for (reason, detail), numbers in alike.items():
            files = f"file{'s' * (len(numbers) > 1)} {_ranges(numbers)} of {audit['files']['read']}"
            tell.print(f"  {files}, {reason}: {detail}", highlight=False)
        if quarantined is None:
            tell.print("Their names are written with --quarantined FILE.", highlight=False)
        raise typer.Exit(1)


def _ranges(numbers: Sequence[int]) -> str:
    """Increasing numbers, those in a row as one.

    >>> _ranges([1, 4, 5, 6, 9])
    '1, 4-6, 9'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
