import torch
from cohort import conditioned

from meddiff.data.conditions import Known
from meddiff.diffusion.denoiser import Condition
from meddiff.diffusion.losses import stable_target
from meddiff.seeds import derive
from meddiff.tasks.synthesis import LABEL, Synthesis, dropped
from meddiff.tasks.task import Space

KNOWN = Known({"csf": 1, "lesion": 4}, ("no lesion", "lesion"), {"age": (50.0, 10.0)})


def batch(n=3, size=(16, 16), **more):
    labels = torch.zeros(n, 1, *size)
    labels[0, 0, :4] = 2  # 64 voxels of lesion
    labels[1, 0, 0, :5] = 2  # 5 voxels
    image = torch.linspace(-1, 1, n * size[0] * size[1]).view(n, 1, *size)
    return {"image": image, "label": labels, "seed": torch.arange(n), **more}


def test_a_pair_is_the_image_and_one_hot_channels_from_which_both_come_back(tmp_path):
    task = Synthesis(conditioned(tmp_path, paired=True, labels=["csf", "lesion"]), KNOWN)
    x0, cond = task.example(batch())
    assert cond is None
    assert x0.shape == (3, 4, 16, 16)
    assert task.channels == 4
    assert set(x0[:, 1:].unique().tolist()) == {-LABEL, LABEL}
    torch.testing.assert_close(x0[:, 1:].sum(1), torch.full((3, 16, 16), -LABEL))
    space = Space((4.0, 4.0, 4.0), "axial", 1 / 300, -1 / 3, "CT", "HU")
    volumes = task.outcome(x0[0], space)
    assert volumes["label"].array.dtype.kind == "u"
    assert torch.equal(
        torch.from_numpy(volumes["label"].array[..., 0]), torch.where(batch()["label"][0, 0] == 2, 4, 0).byte()
    )
    torch.testing.assert_close(torch.from_numpy(volumes["image"].array[..., 0]) / 300 - 1 / 3, x0[0, 0])
    assert volumes["image"].geometry.close(volumes["label"].geometry)


def test_the_class_of_an_image_is_whether_it_shows_the_label(tmp_path):
    task = Synthesis(conditioned(tmp_path, classes={"label": "lesion", "voxels": 6}, drop=0.0), KNOWN)
    _, cond = task.example(batch())
    assert cond.label.tolist() == [1, 0, 0]


def test_a_mask_is_channels_of_its_labels_and_one_that_says_it_is_there(tmp_path):
    task = Synthesis(conditioned(tmp_path, mask=True, labels=["csf", "lesion"], drop=0.0), KNOWN)
    _, cond = task.example(batch())
    assert task.cond_channels == 3
    assert torch.equal(cond.image[:, 1], (batch()["label"][:, 0] == 2).float())
    assert torch.equal(cond.image[:, 2], torch.ones(3, 16, 16))
    assert not cond.image[:, 0].any()


def test_conditions_are_dropped_whole_for_their_share_and_by_the_seed_of_the_image(tmp_path):
    task = Synthesis(conditioned(tmp_path, mask=True, classes={"column": "class"}, covariates=["age"], drop=0.3), KNOWN)
    n = 400
    told = {"class": torch.ones(n, dtype=torch.long), "covariates": torch.zeros(n, 1)}
    seeds = torch.tensor([derive(0, "item", i) for i in range(n)])
    _, cond = task.example(batch(n, (2, 2)) | told | {"seed": seeds})
    gone = cond.label == -1
    assert 0.22 < gone.float().mean() < 0.38  # 0.3 within 3.5 standard deviations
    assert torch.equal(gone, cond.covariates[:, 0].isnan())
    assert torch.equal(gone, ~cond.image[:, -1].flatten(1).any(1))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    shuffled = {name: v[order] for name, v in (batch(n, (2, 2)) | told | {"seed": seeds}).items()}
    assert torch.equal(task.example(shuffled)[1].label, cond.label[order])


def test_everything_dropped_is_what_a_network_takes_for_unknown():
    cond = dropped(Condition(torch.ones(2, 1, 4, 4), torch.tensor([0, 1]), torch.zeros(2, 3)))
    assert not cond.image.any()
    assert cond.label.tolist() == [-1, -1]
    assert cond.label.dtype == torch.long
    assert cond.covariates.isnan().all()


def test_the_target_at_high_noise_is_the_mean_of_the_class():
    x0 = torch.zeros(2, 1, 4, 4)
    reference = torch.cat([torch.full((5, 1, 4, 4), -1.0), torch.full((5, 1, 4, 4), 1.0)])
    of = torch.arange(10) >= 5
    agrees = torch.stack([of, ~of])
    sigma = torch.full((2,), 1e4)
    target = stable_target(x0 + 0.5, x0, sigma, reference, agrees)
    torch.testing.assert_close(target[0], torch.full((1, 4, 4), 5 / 6), atol=1e-4, rtol=0)
    torch.testing.assert_close(target[1], torch.full((1, 4, 4), -5 / 6), atol=1e-4, rtol=0)


def test_reference_images_have_the_classes_of_their_batch(tmp_path):
    config = conditioned(tmp_path, classes={"label": "lesion"}, train={"reference": 3})
    task = Synthesis(config, KNOWN, batch())
    assert task.reference.shape == (3, 1, 16, 16)
    assert task.reference_class.tolist() == [1, 0, 0]
