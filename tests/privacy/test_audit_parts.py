import numpy as np
import oracles
import pytest
import torch
from scipy.stats import binomtest

from meddiff.audit_config import AuditConfig
from meddiff.config_file import parse_config
from meddiff.errors import ConfigError
from meddiff.privacy.audit.changes import BLUR, Placement, blurred, changes, combined, placed_at, reduced
from meddiff.privacy.audit.detector import contrast, train_detector
from meddiff.privacy.audit.membership import NOISES, SIGMAS, attack_scores, attacks, by_patient
from meddiff.privacy.audit.scores import (
    NEXT,
    TURNED,
    Detector,
    Threshold,
    correlation_distance,
    nearness,
    turned_distance,
)
from meddiff.privacy.audit.statistics import Rate, attack, excess_p, permutation_p
from meddiff.privacy.audit.verdict import judge

CPU = torch.device("cpu")


def images(n, *size, seed=0):
    """Smooth images, each of its own."""
    g = torch.Generator().manual_seed(seed)
    rough = torch.randn(n, 1, *size, generator=g)
    smooth = blurred(rough, torch.full((n,), 1 / 16))
    return (smooth / smooth.std() / 2).clamp(-1, 1)


def placement(n, dims, **moves):
    still = {
        "shift": torch.zeros(n, dims),
        "rotation_deg": torch.zeros(n, dims * (dims - 1) // 2),
        "zoom": torch.ones(n),
        "flip": torch.zeros(n, dtype=torch.bool),
    }
    return Placement(**{**still, **moves})


@pytest.mark.parametrize("size", [(12, 20), (8, 10, 12)])
def test_whole_voxels_move_exactly(size):
    x, dims = torch.rand(2, 1, *size), len(size)
    torch.testing.assert_close(placed_at(x, placement(2, dims)), x, rtol=0, atol=1e-5)
    shift = torch.zeros(2, dims)
    shift[:, 0] = 2 / size[0]
    torch.testing.assert_close(placed_at(x, placement(2, dims, shift=shift))[:, :, 2:], x[:, :, :-2], rtol=0, atol=1e-5)
    mirrored = placed_at(x, placement(2, dims, flip=torch.tensor([True, False])))
    torch.testing.assert_close(mirrored, torch.stack([x[0].flip(1), x[1]]), rtol=0, atol=1e-5)
    turned = placed_at(x[:, :, :8, :8], placement(2, 2, rotation_deg=torch.full((2, 1), 90.0))) if dims == 2 else None
    if turned is not None:
        torch.testing.assert_close(turned, x[:, :, :8, :8].rot90(1, (2, 3)), rtol=0, atol=1e-4)


def test_blur_has_the_variance_it_says_and_reduction_averages():
    x = torch.zeros(1, 1, 64, 64)
    x[0, 0, 32, 32] = 1
    y = blurred(x, torch.tensor([1 / 32]))[0, 0]
    position = torch.arange(64.0) - 32
    assert float(y.sum()) == pytest.approx(1, abs=1e-5)
    assert float((y.sum(1) * position**2).sum()) == pytest.approx(4, rel=0.01)  # 2 voxels
    assert BLUR * 64 == 1
    torch.testing.assert_close(
        reduced(torch.arange(16.0).view(1, 1, 4, 4), 2).flatten(), torch.tensor([2.5, 4.5, 10.5, 12.5])
    )


def test_changes_are_the_nine_of_the_protocol_and_slices_in_3d():
    nine = ["exact", "noise", "intensity", "blur", "shift", "rotation", "flip", "zoom", "combined"]
    assert list(changes(2, 2)) == nine
    assert list(changes(3, 2)) == [*nine, "slice offset"]
    x = images(3, 12, 12, 12)
    for name, change in changes(3, 2).items():
        one, again = (change(x, torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(one, again), name
        assert one.shape == x.shape
    still = combined(x, torch.zeros(3), torch.Generator().manual_seed(0))
    for before, after in zip(x, still, strict=True):
        assert min(float((after - v).abs().max()) for v in (before, before.flip(1))) < 1e-4


def test_contrast_ignores_other_images_of_the_same_patient():
    e = torch.eye(4)
    views = torch.stack([e[0], e[0], e[0], e[0]])  # two images of one patient that look alike, two views each
    assert float(contrast(views, torch.tensor([0, 0, 0, 0]))) == pytest.approx(0, abs=1e-6)
    assert float(contrast(views, torch.tensor([0, 1, 0, 1]))) == pytest.approx(np.log(3), abs=1e-5)


def test_detector_is_the_same_twice_and_leaves_the_global_generator_alone():
    x, patients = images(8, 16, 16), [f"p{i}" for i in range(8)]
    settings = AuditConfig(detector_steps=2, detector_batch=4)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two = (train_detector(x, patients, settings)(x) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(one.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(train_detector(x, patients, settings)(x.flip(2)), one)


def test_nearness_takes_a_patient_at_the_nearest_of_its_images():
    distances = torch.tensor([[0.1, 0.2, 1.0, 3.0, 2.0, 2.0]])
    owner = torch.tensor([0, 0, 1, 1, 2, 2])
    found = nearness(distances, owner)
    assert float(found.ratio[0]) == pytest.approx(0.1 / 1.5)
    assert found.nearest.tolist() == [0]


@pytest.mark.parametrize("size", [(32, 32), (16, 16, 16)])
def test_correlation_sees_through_shifts_and_mirrors(size):
    x = images(4, *size)
    distance = correlation_distance(x)
    moved = x.roll((1,) * len(size), tuple(range(2, 2 + len(size)))).flip(2) * 0.5 + 0.2
    apart = distance(moved)
    assert apart.argmin(1).tolist() == [0, 1, 2, 3]
    assert float(apart.diagonal().max()) < 0.01
    assert float(apart[~torch.eye(4, dtype=torch.bool)].min()) > 0.3


def test_turned_correlation_finds_a_rotation_that_the_plain_one_takes_for_another_head():
    x = images(4, 32, 32)
    turned = placed_at(x, placement(4, 2, rotation_deg=torch.full((4, 1), 10.0)))
    plain, searched = (
        measure(turned).diagonal() for measure in (correlation_distance(x), turned_distance(x, torch.arange(4)))
    )
    assert (searched < 0.7 * plain).all()


def test_with_many_images_of_a_patient_rotations_are_tried_on_the_nearest_of_them():
    x = images(12, 32, 32)
    patients = torch.arange(12) // 6  # two of six images each
    turned = placed_at(x, placement(12, 2, rotation_deg=torch.full((12, 1), 5.0)))
    everything, few = (turned_distance(x, owner)(turned) for owner in (torch.arange(12), patients))
    plain = correlation_distance(x)(turned)
    torch.testing.assert_close(few.diagonal(), everything.diagonal())
    assert ((few == plain) | torch.isclose(few, everything, rtol=1e-3)).all()
    assert (few < plain).sum() <= 12 * 2 * TURNED


def test_threshold_flags_no_more_independent_patients_than_it_promises():
    flagged = []
    for seed in range(300):
        g = torch.Generator().manual_seed(seed)
        draw = torch.rand(1 + 99, NEXT + 5, generator=g)
        near = {"a": nearness(draw, torch.arange(NEXT + 5))}
        held = {"a": type(near["a"])(near["a"].ratio[1:], near["a"].nearest[1:])}
        own = {"a": type(near["a"])(near["a"].ratio[:1], near["a"].nearest[:1])}
        flagged.append(bool(Threshold.learnt(held, [str(i) for i in range(99)], 0.01).flagged(own)))
    assert sum(flagged) <= 8  # of 300 at 1 %; 9 and more have probability 0.004


def test_threshold_takes_a_patient_at_its_worst_image():
    ratio = torch.tensor([0.9, 0.1, 0.8, 0.7])
    held = {"a": nearness(torch.rand(4, 9), torch.arange(9))}
    held["a"] = type(held["a"])(ratio, torch.zeros(4, dtype=torch.long))
    threshold = Threshold.learnt(held, ["p", "p", "q", "q"], 0.4)
    assert threshold.patients == 2
    below, above = ({"a": type(held["a"])(torch.tensor([v]), torch.zeros(1, dtype=torch.long))} for v in (0.09, 0.11))
    assert threshold.flagged(below).item()
    assert not threshold.flagged(above).item()


def test_intervals_are_the_published_ones():
    assert Rate.counted(0, 1000).high == pytest.approx(1 - 0.025 ** (1 / 1000))
    assert Rate.counted(24, 24).low == pytest.approx(0.025 ** (1 / 24))


def test_an_excess_of_copies_allows_for_the_chance_in_the_threshold():
    assert excess_p(1, 1, 3, 299) == pytest.approx(0.01)
    assert excess_p(34, 1000, 3, 300) < 0.01
    rng = np.random.default_rng(0)
    clean = [rng.random(300) for _ in range(2000)], [rng.random(1000) for _ in range(2000)]
    counts = [int((made < np.partition(held, 2)[2]).sum()) for held, made in zip(*clean, strict=True)]
    found = np.mean([excess_p(n, 1000, 3, 300) <= 0.025 for n in counts])
    assert found == pytest.approx(0.025, abs=0.01)
    assert np.mean([binomtest(n, 1000, 0.01, alternative="greater").pvalue <= 0.025 for n in counts]) > 0.1


def test_permutation_is_of_patients():
    nearest = [0] * 50 + [1] * 30 + [2, 3, 4, 5]
    _, p = permutation_p(nearest, [True, False, True, False, True, False])
    assert p > 0.3  # two patients have most images: their labels say nothing, whatever a test of images would
    share, p = permutation_p(list(range(20)) * 5, [True] * 20 + [False] * 20)
    assert (share, p) == (1.0, pytest.approx(1e-4))


def test_attack_at_its_ends():
    clear = attack(torch.arange(24.0) - 100, torch.arange(300.0), 0.01)
    assert (clear.auc, clear.tpr, clear.tpr_high) == (1.0, 1.0, 1.0)
    assert clear.tpr_low == pytest.approx(0.025 ** (1 / 24))
    same = attack(torch.arange(500.0), torch.arange(500.0), 0.01)
    assert same.auc == pytest.approx(0.5)
    assert same.auc_low < 0.5 < same.auc_high
    assert same.tpr <= 0.01


def test_every_attack_finds_the_images_of_a_memorised_set_and_none_of_a_law():
    members, others = images(40, 16, 16), images(120, 16, 16, seed=1)
    names = [f"m{i}" for i in range(40)], [f"o{i}" for i in range(120)]

    def tried(denoise):
        scores = [attack_scores(denoise, x, None, 0.5, 0, CPU) for x in (members, others)]
        return attacks(scores[0], names[0], scores[1], names[1], 0.01, 0)

    for name, one in tried(oracles.finite(members)).items():
        assert (one.auc, one.tpr) == (1.0, 1.0), name
    for name, one in tried(oracles.gaussian(0.0, 0.5)).items():
        assert one.auc_low < 0.5 < one.auc_high, name
        assert one.tpr_low < 0.02, name


def test_attacks_spend_what_they_say_and_do_not_depend_on_the_batch():
    calls = []

    def denoise(x, sigma, cond):
        calls.append(len(x))
        return 0.5 * x

    x = images(70, 8, 8)
    scores = attack_scores(denoise, x, None, 0.5, 0, CPU)
    assert sum(calls) == 70 * (1 + len(SIGMAS) * NOISES)
    for name, alone in attack_scores(denoise, x[65:], None, 0.5, 0, CPU).items():
        torch.testing.assert_close(alone, scores[name][65:])
    assert by_patient(torch.tensor([1.0, 3.0, 5.0]), ["b", "b", "a"]).tolist() == [5.0, 2.0]


def rates(**found):
    return {name: Rate.counted(n, 100) for name, n in found.items()}


def tprs(low, high):
    return {
        "loss": attack(torch.arange(9.0), torch.arange(200.0), 0.01).__class__(0.5, 0.4, 0.6, low, low, high, 9, 200)
    }


@pytest.mark.parametrize(
    ("gate", "copies", "tpr", "verdict", "reason"),
    [
        (rates(exact=100, zoom=95), (0, 1000), (0.0, 0.03), "PASS", "within"),
        (rates(exact=100, zoom=94), (0, 1000), (0.0, 0.03), "INCONCLUSIVE", "zoom 0.94"),
        (rates(exact=100), (13, 1000), (0.0, 0.03), "INCONCLUSIVE", "copy rate may be 2.21%"),
        (rates(exact=100), (18, 1000), (0.0, 0.03), "INCONCLUSIVE", "copy rate may be 2.83%"),
        (rates(exact=100), (34, 1000), (0.0, 0.03), "FAIL", "surely above 1.0%: at least 2.37%"),
        (rates(exact=100), (0, 1000), (0.0, 0.031), "INCONCLUSIVE", "loss may find 3.1%"),
        (rates(exact=100), (0, 1000), (0.021, 0.5), "FAIL", "loss finds at least 2.1%"),
        (rates(exact=0), (500, 1000), (0.0, 0.03), "FAIL", "misses planted copies"),
    ],
)
def test_verdict_follows_the_limits(gate, copies, tpr, verdict, reason):
    found, reasons = judge(gate, Rate.counted(*copies), excess_p(*copies, 3, 300), tprs(*tpr), AuditConfig())
    assert found == verdict
    assert reason in "; ".join(reasons)


def test_detector_joins_both_measures_and_names_the_copied_image():
    training, held = images(30, 16, 16), images(40, 16, 16, seed=1)
    look = Detector.over(training, [f"p{i}" for i in range(30)], lambda x: torch.nn.functional.normalize(x.flatten(1)))
    threshold = Threshold.learnt(look(held), [f"h{i}" for i in range(40)], 0.1)
    found = look(torch.cat([training[7:8], images(20, 16, 16, seed=2)]))
    suspicion, nearest = threshold.suspicion(found)
    assert threshold.flagged(found)[0]
    assert int(threshold.flagged(found)[1:].sum()) <= 6  # of 20 at 10 %
    assert int(nearest[0]) == 7
    assert float(suspicion[0]) == float(suspicion.min())


def test_limits_that_cannot_be_judged_are_refused():
    tree = {
        "task": "synthesis",
        "data": {"manifest": "m.jsonl", "spacing_mm": [1, 1], "size": [16, 16]},
        "network": {"spatial_dims": 2, "channels": [8]},
        "train": {"steps": 1},
    }
    with pytest.raises(ConfigError, match=r"98 patients cannot show a false-positive rate of 0.01; 99 can"):
        parse_config({**tree, "audit": {"held_out": 98}}, "c")
    with pytest.raises(ConfigError, match="must not be above"):
        parse_config({**tree, "audit": {"copies_fail": 0.5}}, "c")
    assert AuditConfig(held_out=400).digest != AuditConfig().digest
