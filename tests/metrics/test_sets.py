"""Samples and means of a case known in closed form, compared as sets."""

import pytest
import torch

from meddiff.metrics.sets import CLEAN, Sets

PATIENTS = [f"p{k}" for k in range(6)]


def filled(patients=PATIENTS, reference=PATIENTS):
    """White texture of variance 1 under noise of variance 1: the mean keeps half of it, a sample has all of it."""
    draw = torch.Generator().manual_seed(0)

    def white():
        return torch.randn(4, 1, 32, 32, generator=draw)

    images = {name: white() for name in dict.fromkeys([*patients, *reference])}
    names = [name for name in reference for _ in range(4)]
    sets = Sets(torch.cat([images[name] for name in reference]), names, (-9.0, 9.0))
    for name in patients:
        mean = (images[name] + white()) / 2
        sets.add(name, images[name], {"mean": mean, "sample": mean + white() / 2**0.5})
    return sets


def test_a_sample_has_the_texture_and_the_mean_the_smaller_error():
    found = filled().distances()
    for name in ("texture", "texture/1", "texture/2", "of_others", "of_others/1", "of_others/2", "spectrum_db"):
        assert found["sample"][name] < found["mean"][name] / 2, name
    assert found["mean"]["of_others/1"] == pytest.approx(1 - 0.5**0.5, abs=0.02)
    assert found["sample"]["of_others"] < 2 * found[CLEAN]["of_others"]
    assert found[CLEAN]["sliced_wasserstein"] == found[CLEAN]["texture"] == 0


def test_what_a_set_is_compared_with_are_the_images_of_other_patients():
    sets = filled()
    for own, others in sets._halves():
        assert not {sets.owners[i] for i in own} & {sets.patients[i] for i in others}
    assert [len(own) for own, _ in sets._halves()] == [12, 12]
    one = filled(PATIENTS[:1])
    ((own, others),) = one._halves()
    assert (len(own), len(others)) == (4, 4)


def test_images_of_one_patient_only_are_compared_with_their_own_alone():
    found = filled(PATIENTS[:1], PATIENTS[:1]).distances()
    assert set(found["sample"]) == {"sliced_wasserstein", "spectrum_db", "texture", "texture/1", "texture/2"}
