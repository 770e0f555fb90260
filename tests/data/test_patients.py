from types import SimpleNamespace

import pytest
import torch
from cohort import cohort, config

from meddiff.data.conditions import images_of, learn
from meddiff.data.loader import Item
from meddiff.data.manifest import Manifest
from meddiff.data.patients import PatientSteps, by_patient, each_patient, patient_loader
from meddiff.seeds import secret

PATIENTS = {f"p{i}": list(range(5 * i, 5 * i + 1 + i % 5)) for i in range(40)}


def steps(patients=PATIENTS, rate=0.25, number=3, start=0, stop=200, chance=None):
    return PatientSteps(patients, rate, number, start, stop, 7, chance or torch.Generator().manual_seed(0))


def test_cases_of_one_patient_are_one():
    names = ("a", "b", "a")
    images = SimpleNamespace(
        cases=tuple(SimpleNamespace(patient=name) for name in names),
        items=[Item(c, k) for c in range(3) for k in (0, 1)],
    )
    assert by_patient(images) == {"a": [0, 1, 4, 5], "b": [2, 3]}


def test_each_patient_is_drawn_on_its_own_at_the_rate():
    drawn = torch.zeros(200, 40)
    for step, batch in enumerate(steps()):
        for draw in batch:
            drawn[step, draw.item // 5] = 1
    assert abs(float(drawn.mean()) - 0.25) < 4 * (0.25 * 0.75 / 8000) ** 0.5
    sizes = drawn.sum(1)  # binomial: mean 10, variance 7.5, and not one size
    assert 5.0 < float(sizes.var()) < 10.5
    together = torch.corrcoef(drawn.T)[~torch.eye(40, dtype=torch.bool)]
    assert abs(float(together.mean())) < 0.01


def test_a_patients_part_does_not_depend_on_who_else_is_there():
    alone = {"p13": PATIENTS["p13"]}
    for own, among in zip(steps(alone, 1.0, stop=5), steps(rate=1.0, stop=5), strict=True):
        assert own == [draw for draw in among if draw.item // 5 == 13]


def test_a_patient_shows_as_many_different_images_as_it_has():
    (batch,) = steps({"one": [4], "many": list(range(10, 20))}, 1.0, stop=1)
    assert [draw.item for draw in batch[:3]] == [4, 4, 4]
    assert len({draw.seed for draw in batch}) == 6
    assert len({draw.item for draw in batch[3:]}) == 3


def test_nobody_can_draw_the_same_patients_again():
    first, second = ([[d.item for d in batch] for batch in steps(chance=secret())] for _ in range(2))
    assert first != second


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_patients_one_after_the_other_and_may_be_of_nobody(tmp_path, workers):
    manifest = Manifest.read(cohort())
    settings = config(cohort(), tmp_path)
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"workers": workers})})
    images = images_of(settings, learn(settings, manifest), manifest, manifest.split("train"))
    whole, nobody = (
        next(iter(patient_loader(images, steps(by_patient(images), rate, 2, stop=1)))) for rate in (1.0, 0.0)
    )
    assert list(each_patient(nobody, 2)) == []
    parts = list(each_patient(whole, 2))
    assert [part["image"].shape for part in parts] == [(2, 1, 16, 16)] * 4
    patients = {case.case: case.patient for case in images.cases}
    assert all(len({patients[case] for case in part["case"]}) == 1 for part in parts)
    assert len({patients[case] for case in whole["case"]}) == 4
