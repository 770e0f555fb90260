import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine
from torch import multiprocessing

from meddiff.errors import MetricError
from meddiff.metrics.overlap import dice_per_label
from meddiff.metrics.per_case import PerCase

LABELS = {"one": 1, "two": 2}


def case(i):
    generator = torch.Generator().manual_seed(i)
    size = 4 + 3 * i  # cases of different sizes: a pooled Dice would differ
    return f"case_{i}", *torch.randint(0, 3, (2, size, size), generator=generator)


def metric():
    return PerCase(lambda p, y: dice_per_label(p, y, LABELS))


def update(found, indices):
    for i in indices:
        name, prediction, reference = case(i)
        found.update(([name], prediction[None], reference[None]))
    return found


def on_a_process(rank, store, results):
    idist.initialize("gloo", rank=rank, world_size=2, init_method=f"file://{store}")
    share = [[0, 2, 4], [1, 3, 0]][rank]  # five cases: a sampler repeats the first to even the numbers
    found = update(metric(), share)
    torch.save({"rows": found.rows(), "means": found.compute()}, f"{results}/{rank}.pt")
    idist.finalize()


def test_two_processes_give_the_result_of_one(tmp_path):
    multiprocessing.spawn(on_a_process, (tmp_path / "store", tmp_path), nprocs=2)
    alone = update(metric(), [4, 3, 2, 1, 0])
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found == {"rows": alone.rows(), "means": alone.compute()}


def test_a_case_counts_once_however_large_it_is():
    found = metric()
    small, large = torch.ones(2, 2), torch.ones(50, 50)
    found.update((["small", "large"], [small * 0, large], [small, large]))
    assert found.compute() == {"dice/one": 0.5, "dice/two": 1.0}
    assert found.rows() == [
        {"case": "large", "dice/one": 1.0, "dice/two": 1.0},
        {"case": "small", "dice/one": 0.0, "dice/two": 1.0},
    ]


def test_an_evaluator_resets_it_and_reports_every_number():
    engine = Engine(lambda engine, i: {"names": [case(i)[0]], "maps": [m[None] for m in case(i)[1:]]})
    found = PerCase(
        lambda p, y: dice_per_label(p, y, LABELS), output_transform=lambda out: (out["names"], *out["maps"])
    )
    found.attach(engine, "overlap")
    once = dict(engine.run([0, 1, 2]).metrics)
    again = dict(engine.run([0, 1, 2]).metrics)
    assert once == again
    assert once["overlap"] == update(metric(), [0, 1, 2]).compute()
    assert once["dice/one"] == once["overlap"]["dice/one"]


def test_what_would_be_lost_or_counted_twice_is_refused():
    found = update(metric(), [0])
    with pytest.raises(MetricError, match="case_0: measured twice"):
        update(found, [0])
    with pytest.raises(MetricError, match="a: psnr is nan"):
        PerCase(lambda x: {"psnr": float("nan")}).update((["a"], [0]))
    with pytest.raises(ValueError, match="argument 2"):
        found.update((["a", "b"], torch.zeros(1, 2, 2), torch.zeros(2, 2, 2)))
    with pytest.raises(MetricError, match="No case"):
        metric().compute()


def test_cases_with_other_numbers_are_refused():
    found = PerCase(lambda x: {x: 1.0})
    found.update((["a", "b"], ["psnr", "ssim"]))
    with pytest.raises(MetricError, match=r"b: measured \['case', 'ssim'\], but a"):
        found.compute()
