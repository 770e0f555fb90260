import torch

from meddiff.seeds import derive, generator


def test_purposes_do_not_run_into_each_other():
    seeds = {derive(0, "a", 1, 2), derive(0, "a", 12), derive(0, "a1", 2), derive(1, "a", 1, 2), derive(0, "a", 1)}
    assert len(seeds) == 5


def test_a_seed_is_the_same_on_every_machine():
    assert derive(0, "noise", 1) == 8188269915554620730


def test_generators_of_one_purpose_draw_the_same_numbers():
    a, b = (torch.randn(3, generator=generator(5, "x", i)) for i in (1, 1))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
