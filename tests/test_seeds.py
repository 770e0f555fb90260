import torch

from meddiff.seeds import FIRST, WORDS, derive, generator, secret


def test_purposes_do_not_run_into_each_other():
    seeds = {derive(0, "a", 1, 2), derive(0, "a", 12), derive(0, "a1", 2), derive(1, "a", 1, 2), derive(0, "a", 1)}
    assert len(seeds) == 5


def test_a_seed_is_the_same_on_every_machine():
    assert derive(0, "noise", 1) == 8188269915554620730


def test_generators_of_one_purpose_draw_the_same_numbers():
    a, b = (torch.randn(3, generator=generator(5, "x", i)) for i in (1, 1))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_secret_generator_has_all_of_its_state_from_the_operating_system(monkeypatch):
    words = torch.arange(WORDS, dtype=torch.int64) * 6700417 % 2**32
    given = words.to(torch.uint32).numpy().tobytes()
    monkeypatch.setattr("meddiff.seeds.secrets.token_bytes", lambda n: given[:n])
    assert torch.equal(secret().get_state()[FIRST : FIRST + 8 * WORDS].view(torch.int64), words)


def test_secret_draws_never_repeat_and_are_normal():
    a, b = (torch.randn(100_000, generator=secret()) for _ in range(2))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.02
    for x in (a, b):
        assert abs(float(x.mean())) < 0.02
        assert abs(float(x.std()) - 1) < 0.02


def test_why_a_seed_is_not_enough_for_a_secret_generator():
    one, other = (torch.Generator().manual_seed(5 + k * 2**32) for k in (0, 1))
    assert torch.equal(torch.rand(9, generator=one), torch.rand(9, generator=other))  # 32 bits count
