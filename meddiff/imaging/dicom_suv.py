"""PET as standardised uptake: the factor from Bq/ml to SUV by body weight, or the tag that is missing.

After the vendor-neutral pseudo-code of the Quantitative Imaging Biomarkers Alliance (FDG-PET/CT profile, appendix G).
"""

from collections.abc import Collection
from datetime import datetime, timedelta

from pydicom.dataset import Dataset

from meddiff.imaging.dicom_header import Header, RefusedError, plain


def suv_factor(header: Header) -> float:
    """What one stored unit is in SUVbw, g/ml; 1 where the scanner stored SUVbw. RefusedError names what is missing."""
    units, kind = header.text("Units"), header.text("SUVType") or "BW"
    if units == "GML" and kind == "BW":
        return 1.0
    if units != "BQML":
        raise _refused(f"Units are {units or 'missing'}, SUVType {kind}; BQML, or GML by body weight (BW), is read")
    corrected = header.text("CorrectedImage").split("\\")
    missing = [name for name in ("ATTN", "DECY") if name not in corrected]
    if missing:
        raise _refused(f"CorrectedImage lacks {' and '.join(missing)}")
    weight = _positive(header.number("PatientWeight"), "PatientWeight")
    agent = _agent(header)
    dose = _positive(_number(agent, "RadionuclideTotalDose"), "RadionuclideTotalDose")
    decay = header.text("DecayCorrection")
    if decay == "ADMIN":
        return weight * 1000 / dose
    if decay != "START":
        raise _refused(f"DecayCorrection is {decay or 'missing'}; START or ADMIN is needed")
    return weight * 1000 / (dose * _left(agent, _injection(agent, header), _scan_start(header)))


def enhanced_suv_factor(header: Header, used: Collection[int]) -> float:
    """What one Bq/ml of an enhanced image is in SUVbw, g/ml (PS3.3 C.8.22); RefusedError names what is missing.

    `used` are the numbers of the radiopharmaceuticals in the frame; without any, the file may name one only.
    """
    missing = [name for name in ("AttenuationCorrected", "DecayCorrected") if header.text(name) != "YES"]
    if missing:
        raise _refused(" and ".join(f"{name} is {header.text(name) or 'missing'}, not YES" for name in missing))
    weight = _positive(header.number("PatientWeight"), "PatientWeight")
    agent = _agent(header, used)
    dose = _positive(_number(agent, "RadionuclideTotalDose"), "RadionuclideTotalDose")
    injected = _moment(str(agent.get("RadiopharmaceuticalStartDateTime") or ""), "RadiopharmaceuticalStartDateTime")
    corrected = _moment(header.text("DecayCorrectionDateTime"), "DecayCorrectionDateTime")
    return weight * 1000 / (dose * _left(agent, injected, corrected))


def _left(agent: Dataset, injected: datetime, corrected: datetime) -> float:
    """The share of the dose that is left at the moment to which decay is corrected."""
    half_life = _positive(_number(agent, "RadionuclideHalfLife"), "RadionuclideHalfLife")
    waited = (corrected - injected).total_seconds()
    if not 0 <= waited <= 24 * 3600:
        raise _refused(f"Decay is corrected to {waited:.0f} s after the injection; from 0 to a day is plausible")
    return 2 ** (-waited / half_life)


def _agent(header: Header, used: Collection[int] = ()) -> Dataset:
    agents = list(header.dataset.get("RadiopharmaceuticalInformationSequence") or []) if header.dataset else []
    if used:
        agents = [one for one in agents if one.get("RadiopharmaceuticalAgentNumber") in used]
    if len(agents) != 1:
        raise _refused(
            f"RadiopharmaceuticalInformationSequence is missing, or names {len(agents)} agents of it, not one"
            if used
            else "RadiopharmaceuticalInformationSequence is missing, or names several agents"
        )
    return agents[0]


def _scan_start(header: Header) -> datetime:
    """Of the series, to which decay is corrected; a series time behind the acquisition is one of a later computation."""
    start = _moment(header.text("SeriesDate") + header.text("SeriesTime"), "SeriesDate and SeriesTime")
    acquired = _moment(
        header.text("AcquisitionDate") + header.text("AcquisitionTime"), "AcquisitionDate and AcquisitionTime"
    )
    if start > acquired:
        raise _refused("SeriesTime lies behind AcquisitionTime, so that the time of the decay correction is unknown")
    return start


def _injection(agent: Dataset, header: Header) -> datetime:
    stamp = str(agent.get("RadiopharmaceuticalStartDateTime") or "")
    if stamp:
        return _moment(stamp, "RadiopharmaceuticalStartDateTime")
    time = str(agent.get("RadiopharmaceuticalStartTime") or "")
    if not time:
        raise _refused("RadiopharmaceuticalStartTime is missing")
    injected = _moment(header.text("SeriesDate") + time, "RadiopharmaceuticalStartTime")
    return injected - timedelta(days=1) if injected > _scan_start(header) else injected  # across midnight


def _moment(stamp: str, name: str) -> datetime:
    """PS3.5 section 6.2, DT: YYYYMMDDHHMM[SS[.F]]; the offset from UTC is left out, as scanners write one for both."""
    digits = stamp.split("+")[0].split("-")[0].split(".")[0]
    if not digits.isdigit() or len(digits) not in (12, 14):
        raise _refused(f"{name} is missing or is no moment")
    try:
        return datetime.strptime(digits.ljust(14, "0"), "%Y%m%d%H%M%S")
    except ValueError as e:
        raise _refused(f"{name} is no moment") from e


def _number(agent: Dataset, keyword: str) -> float | None:
    value = agent.get(keyword)
    return None if value is None else float(plain(value)[0])


def _positive(number: float | None, name: str) -> float:
    if number is None or not 0 < number < float("inf"):
        raise _refused(f"{name} is {'missing' if number is None else number}")
    return number


def _refused(what: str) -> RefusedError:
    return RefusedError("no-suv", f"{what}: its numbers cannot be made SUV. Export it with the tags of the scanner.")
