import json
import math
from functools import cache

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from meddiff import degradation_config as settings
from meddiff.errors import ConfigError
from meddiff.tasks.degradations import DEGRADATIONS, Units, apply, draw
from meddiff.tasks.degradations.ct import WATER_PER_MM

KINDS = list(DEGRADATIONS)
SHAPES = {2: (1, 24, 33), 3: (1, 16, 21, 10)}


def parsed(kind, **keys):
    factors = {"factor": [2, 3, 4]} if kind == "downsample" else {}
    return TypeAdapter(settings.Degradation).validate_python({"kind": kind, **factors, **keys})


def drawn(kind, dims, seed=0, **keys):
    if kind == "downsample":
        keys = {"factor": [2, 3, 4][:dims], **keys}
    units = Units((-1000.0, 1000.0), (2.0, 3.0, 5.0)[:dims])
    return draw(parsed(kind, **keys), torch.Generator().manual_seed(seed), dims, units)


def image(dims, seed=0):
    """A smooth blob of different width on each axis, between -1 and about 0.6, with a fine texture."""
    shape = SHAPES[dims]
    grids = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape[1:]), indexing="ij")
    blob = (-sum(g**2 * (4 + 3 * i) for i, g in enumerate(grids))).exp()
    texture = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (1.4 * blob + 0.2 * blob * texture)[None].reshape(shape) - 1


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_replay_from_json_to_the_same_bytes(kind, dims):
    x, parameters = image(dims), drawn(kind, dims)
    first = apply(x, parameters)
    again = apply(x, json.loads(json.dumps(parameters)))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.mask, again.mask)
    assert first.image.shape == x.shape
    assert first.image.dtype == x.dtype
    assert first.mask.shape == (1, *x.shape[1:])
    assert not torch.equal(first.image, x)
    assert x.equal(image(dims))  # the input is left alone


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "downsample"])
def test_a_seed_says_what_is_drawn(kind):
    assert drawn(kind, 2, seed=1) == drawn(kind, 2, seed=1)
    assert drawn(kind, 2, seed=1) != drawn(kind, 2, seed=2)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("kind", "nothing"),
    [
        ("gaussian", {"sigma": 0.0}),
        ("rician", {"sigma": 0.0}),
        ("low_dose_ct", {"photons": 1e15}),
        ("gibbs", {"keep": [1.0, 1.0, 1.0]}),
        ("motion", {"shifts": [[0.0] * 3] * 5}),
        ("downsample", {"factor": [1, 1, 1]}),
        ("mask", {"size": [0.0, 0.0, 0.0]}),
    ],
)
def test_zero_strength_changes_nothing(kind, nothing, dims):
    x = image(dims)
    nothing = {k: v[:dims] if isinstance(v, list) and k != "shifts" else v for k, v in nothing.items()}
    measured = apply(x, {**drawn(kind, dims), **nothing})
    torch.testing.assert_close(measured.image, x, rtol=0, atol=2e-6)
    assert measured.mask.min() == 1


def test_white_noise_has_the_drawn_share_of_the_range_and_is_told():
    x = torch.zeros(1, 300, 300)
    measured = apply(x, {"kind": "gaussian", "dims": 2, "sigma": 0.1, "seed": 3})
    assert measured.sigma == 0.2  # of a range that is 2 wide
    assert measured.image.std().item() == pytest.approx(0.2, rel=0.01)
    assert abs(measured.image.mean().item()) < 0.002
    spectrum = torch.fft.fft2(measured.image[0]).abs().square()
    assert spectrum[:50, :50].mean().item() == pytest.approx(spectrum[100:150, 100:150].mean().item(), rel=0.06)


def test_levels_are_drawn_evenly_in_their_logarithm():
    levels = torch.tensor([drawn("gaussian", 2, seed=s, sigma=(0.01, 1.0))["sigma"] for s in range(2000)])
    assert levels.min() >= 0.01
    assert levels.max() <= 1.0
    # a uniform variable between -2 and 0: mean -1, standard deviation 2 / sqrt(12)
    assert levels.log10().mean().item() == pytest.approx(-1, abs=0.05)
    assert levels.log10().std().item() == pytest.approx(2 / math.sqrt(12), abs=0.02)


@pytest.mark.parametrize("signal", [0.0, 0.3, 1.5])
def test_rician_noise_has_the_moments_of_its_distribution(signal):
    measured = apply(torch.full((1, 400, 400), signal - 1.0), {"kind": "rician", "dims": 2, "sigma": 0.1, "seed": 3})
    magnitude, sigma = measured.image.double() + 1, 0.2
    assert measured.sigma == sigma
    assert magnitude.min() >= 0
    # Gudbjartsson and Patz 1995: the second moment, and the mean by the Laguerre polynomial L_1/2
    assert magnitude.square().mean().item() == pytest.approx(signal**2 + 2 * sigma**2, rel=0.01)
    q = torch.tensor(signal**2 / (4 * sigma**2), dtype=torch.float64)
    laguerre = (1 + 2 * q) * torch.special.i0e(q) + 2 * q * torch.special.i1e(q)
    assert magnitude.mean().item() == pytest.approx(sigma * math.sqrt(math.pi / 2) * laguerre.item(), rel=0.01)


@cache
def ct(photons, radius_mm=90.0, slices=40, **keys):
    """Added noise (48, 48, slices) in HU, of a disc of water in air."""
    place = (torch.arange(48) - 23.5) * 5.0
    x = torch.where(torch.hypot(place[:, None], place) < radius_mm, 0.0, -1.0)[None, :, :, None].repeat(1, 1, 1, slices)
    parameters = {"photons": photons, "views": 64, "kernel": "ramp", "seed": 1, "limits_hu": [-1000.0, 1000.0], **keys}
    parameters |= {"kind": "low_dose_ct", "dims": 3, "spacing_mm": [5.0, 5.0, 5.0]}
    return 1000 * (apply(x, parameters).image - x)[0]


@pytest.mark.parametrize("photons", [1e4, 1e6])
def test_ct_noise_in_the_centre_of_a_disc_of_water_has_its_closed_form(photons):
    """Kak and Slaney 1988, chapter 5: every ray through the centre has the variance exp(mu * diameter) / photons; the
    ramp filter and the sum over views make pi^2 / (12 * views * pitch^2) of it, linear interpolation keeps 2/3 - 2/pi^2."""
    per_ray = math.exp(WATER_PER_MM * 180) / photons
    expected = 1000 / WATER_PER_MM * math.sqrt(per_ray * math.pi**2 / (12 * 64 * 5.0**2) * (2 / 3 - 2 / math.pi**2))
    found = ct(photons)[21:27, 21:27]
    assert found.std().item() == pytest.approx(expected, rel=0.08)  # rays beside the centre are shorter
    assert abs(found.mean().item()) < 0.1 * expected


def test_ct_noise_grows_with_attenuation_and_falls_with_dose():
    def centre(noise):
        return noise[21:27, 21:27].std().item()

    assert ct(1e5)[21:27, 21:27].std() > 1.5 * ct(1e5)[:3, :3].std()
    assert centre(ct(1e5, radius_mm=110.0)) > 1.3 * centre(ct(1e5, radius_mm=90.0))
    assert centre(ct(1e4)) == pytest.approx(math.sqrt(10) * centre(ct(1e5)), rel=0.1)
    assert centre(ct(1e5, kernel="hann")) < 0.6 * centre(ct(1e5))


def test_ct_noise_is_coloured_like_the_ramp():
    power = torch.fft.fft2(ct(1e5).permute(2, 0, 1)).abs().square().mean(0)
    frequency = torch.hypot(torch.fft.fftfreq(48)[:, None], torch.fft.fftfreq(48))
    low, middle = (power[(frequency > a) & (frequency <= b)].mean() for a, b in ((0.02, 0.08), (0.15, 0.25)))
    assert 2 < middle / low < 6  # the ramp alone: 0.2 / 0.05


def test_ct_without_units_is_refused():
    with pytest.raises(ConfigError, match="low_dose_ct needs to know the HU"):
        draw(parsed("low_dose_ct"), torch.Generator(), 2)
    with pytest.raises(ConfigError, match="images of 3 axes need as many spacings"):
        draw(parsed("low_dose_ct"), torch.Generator(), 3, Units((-1000.0, 1000.0), (1.0, 1.0)))


def test_gibbs_keeps_low_frequencies_and_removes_high_ones_per_axis():
    i, j = torch.arange(32.0)[:, None], torch.arange(40.0)
    slow, fast = 0.2 * torch.cos(2 * math.pi * 3 * i / 32), 0.2 * torch.cos(2 * math.pi * 12 * i / 32)
    along_j = 0.2 * torch.cos(2 * math.pi * 15 * j / 40)
    found = apply((slow + fast + along_j)[None], {"kind": "gibbs", "dims": 2, "keep": [0.5, 1.0]}).image
    torch.testing.assert_close(found, (slow + along_j)[None], rtol=0, atol=1e-5)


def test_gibbs_overshoots_an_edge_by_the_ninth_that_wilbraham_found():
    x = torch.full((1, 1024, 4), -0.5)
    x[:, 256:768] = 0.5
    found = apply(x, {"kind": "gibbs", "dims": 2, "keep": [0.125, 1.0]}).image
    assert found.max().item() - 0.5 == pytest.approx(0.0895, abs=0.003)  # of a jump of 1


def test_one_shift_for_all_lines_shifts_the_image():
    x = image(3)
    parameters = {"kind": "motion", "dims": 3, "axis": 1, "times": [], "shifts": [[2.0, -3.0, 1.0]]}
    torch.testing.assert_close(apply(x, parameters).image, x.roll((2, -3, 1), (1, 2, 3)), rtol=0, atol=1e-5)


def test_motion_ghosts_along_the_phase_encoding_only():
    x = torch.full((1, 32, 32), -1.0)
    x[:, 10:20, 12] = 0.8
    parameters = {"kind": "motion", "dims": 2, "axis": 0, "times": [0.3], "shifts": [[1.5, 0.0], [0.0, 0.0]]}
    changed = (apply(x, parameters).image - x).abs()
    assert changed[0, :, 12].max() > 0.05
    assert changed[0, :, torch.arange(32) != 12].max() < 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_the_centre_of_k_space_is_where_the_patient_lay(seed):
    parameters = drawn("motion", 2, seed=seed)
    assert parameters["shifts"][sum(t <= 0.5 for t in parameters["times"])] == [0.0, 0.0]


def test_downsampling_keeps_ramps_inside_and_shows_means():
    i, j = torch.arange(24.0)[:, None], torch.arange(30.0)
    x = (0.05 * i - 0.02 * j)[None]
    found = apply(x, {"kind": "downsample", "dims": 2, "factor": [4, 3]}).image
    torch.testing.assert_close(found[:, 2:-2, 1:-1], x[:, 2:-2, 1:-1], rtol=0, atol=1e-5)
    stripes = torch.tensor([1.0, -1.0]).repeat(12)[:, None].expand(24, 5)[None]
    found = apply(stripes, {"kind": "downsample", "dims": 2, "factor": [2, 1]}).image
    torch.testing.assert_close(found, torch.zeros_like(stripes))


def test_downsampling_takes_sizes_that_do_not_divide():
    x = image(3)  # 16 x 21 x 10
    assert apply(x, {"kind": "downsample", "dims": 3, "factor": [1, 4, 3]}).image.shape == x.shape
    constant = torch.full_like(x, 0.3)
    torch.testing.assert_close(apply(constant, {"kind": "downsample", "dims": 3, "factor": [3, 4, 3]}).image, constant)


@pytest.mark.parametrize(("shape", "share"), [("box", 1.0), ("ellipsoid", math.pi / 6)])
def test_a_masked_region_has_its_volume_and_its_fill(shape, share):
    x = torch.zeros(1, 40, 60, 50)
    parameters = {"kind": "mask", "dims": 3, "shape": shape, "fill": -0.5}
    measured = apply(x, {**parameters, "size": [0.5, 0.2, 0.4], "centre": [0.25, 0.9, 0.5]})
    missing = measured.mask == 0
    assert missing.double().mean().item() == pytest.approx(0.04 * share, rel=0.05)
    assert (measured.image[missing] == -0.5).all()
    assert (measured.image[~missing] == 0).all()
    assert missing[0, :20, 48:, 15:35].sum() == missing.sum()


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("gaussian", "rician")])
def test_only_white_noise_has_a_sigma(kind):
    assert math.isnan(apply(image(2), drawn(kind, 2)).sigma)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"kind": "gaussian", "sigma": [0.2, 0.1]}, "first limit must not be above"),
        ({"kind": "rician", "sigma": [0, 0.1]}, "greater than 0"),
        ({"kind": "gibbs", "keep": [0.5, 1.5]}, "less than or equal to 1"),
        ({"kind": "motion", "moves": [3, 2]}, "first limit must not be above"),
        ({"kind": "downsample", "factor": [0, 2]}, "greater than or equal to 1"),
        ({"kind": "blur"}, "does not match any of the expected tags"),
        ({"kind": "mask", "sizes": 3}, "Extra inputs"),
    ],
)
def test_wrong_settings_are_refused(tree, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(settings.Degradation).validate_python(tree)


def test_acts_that_do_not_fit_the_image_are_refused():
    with pytest.raises(ConfigError, match="images of 2 axes need 2 factors; found \\[2, 3, 4\\]"):
        draw(parsed("downsample"), torch.Generator(), 2)
    with pytest.raises(ConfigError, match="axis 2 does not exist in images of 2 axes"):
        draw(parsed("motion", axis=2), torch.Generator(), 2)
    with pytest.raises(ConfigError, match="name an axis that images of 2 axes do not have"):
        draw(parsed("gibbs", axes=[2]), torch.Generator(), 2)
    with pytest.raises(ConfigError, match="drawn for 3 spatial axes"):
        apply(image(2), drawn("gibbs", 3))
    with pytest.raises(ConfigError, match="kind 'blur' is unknown; choose one of gaussian"):
        apply(image(2), {"kind": "blur"})
