"""The release gate: nothing leaves but the very files that an audit passed, made by the very model that it attacked.

It guards against mistakes, not against someone who rewrites audit.json.
"""

import json
from pathlib import Path
from typing import Any

from meddiff.data.manifest import Manifest
from meddiff.errors import ManifestError, PrivacyError
from meddiff.privacy.audit.sets import hashes, sidecar

STAMP = "synthetic, meddiff"
UNAUDITED = "UNAUDITED synthetic, meddiff"  # in every file of a set that nobody audited


def read_audit(folder: Path) -> dict[str, Any]:
    """What `meddiff audit` wrote; PrivacyError where it is missing or damaged."""
    path = folder / "audit.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for key in ("verdict", "reasons", "weights", "hashes"):
            record[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PrivacyError(
            f"{path}: is no audit that can be read ({error}). Give the folder that `meddiff audit` wrote."
        ) from error
    return record


def admit(manifest: Manifest, record: dict[str, Any] | None) -> None:
    """PrivacyError unless the audit passed, for exactly these files as they are now, and for the model that made them."""
    where = manifest.folder
    if record is None:
        raise PrivacyError(
            f"{where}: no audit was given, and a sample is not anonymous by being a sample. Run `meddiff audit RUN {where} -o DIR` and "
            "name it with --audit DIR; with --unaudited every file says that nobody looked."
        )
    if record["verdict"] != "PASS":
        raise PrivacyError(
            f"{where}: the audit says {record['verdict']}: {'; '.join(record['reasons'])}. This set is not released. Train on more "
            "patients, for fewer steps or with differential privacy (train.privacy), and audit again."
        )
    audited, found = record["hashes"]["synthetic"], hashes(manifest)
    for what, cases in (
        ("was changed after the audit", [n for n in found if n in audited and found[n] != audited[n]]),
        ("was not audited", [n for n in found if n not in audited]),
        ("was audited and is missing", [n for n in audited if n not in found]),
    ):
        if cases:
            raise PrivacyError(f"{where}: {cases[0]} {what} ({len(cases)} such). Audit the set as it is now.")
    if manifest.digest != record["hashes"]["synthetic_manifest"]:
        raise PrivacyError(
            f"{where}: the manifest was changed after the audit (classes, labels or grids). Audit the set again."
        )
    for case in manifest.cases:
        made_by = sidecar(manifest, case)["weights"]
        if made_by != record["weights"]:
            raise PrivacyError(
                f"{where}: {case.case} was made by the weights {made_by[:12]}..., the audit attacked "
                f"{record['weights'][:12]}.... Audit the set with its own run."
            )
    verify(manifest)


def verify(manifest: Manifest) -> None:
    """PrivacyError where a file is not the one that the set's manifest records, or does not say that it is synthetic."""
    for case in manifest.cases:
        sidecar(manifest, case)
        try:
            manifest.verify(case)
        except ManifestError as error:
            raise PrivacyError(f"{manifest.folder}: a file was changed after it was sampled: {error}") from error
