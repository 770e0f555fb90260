import csv
import json

import numpy as np
import pytest
from PIL import Image

from meddiff.errors import MetricError
from meddiff.metrics.bootstrap import bootstrap_mean
from meddiff.report.cases import Chosen, Picture, choose, label_colours, save_cases, write_cases

LABELS = {"background": 0, "grey matter": 2, "lesion": 4}
DICE = [0.9, 0.2, 0.7, 0.8, 0.4]


def table(values=DICE):
    return [
        {"case": f"case_{i}", "patient": f"p{i // 2}", "dice": v, "hd95_mm": 1 / 3 + i} for i, v in enumerate(values)
    ]


def pictures(case):
    rng = np.random.default_rng(int(case[-1]))
    image, label = rng.uniform(-1, 1, (2, 20, 16)), rng.choice([0, 2, 4], (20, 16))
    return [
        Picture("input", image[0], (-1, 1)),
        Picture("reference", image[0], (-1, 1), label=label),
        Picture("prediction", image[0], (-1, 1), label=label),
        Picture("entropy", image[1], (0, 1), colours="magma"),
    ]


def write(folder, rows=None, **changes):
    return write_cases(
        folder, rows or table(), **{"by": "dice", "higher_is_better": True, **changes}, pictures=pictures
    )


def test_worst_median_and_best_are_those_of_the_metric():
    assert choose(table(), "dice", True) == Chosen("case_1", "case_2", "case_0")
    assert choose(table(), "hd95_mm", False) == Chosen("case_4", "case_2", "case_0")


def test_equal_cases_are_ranked_by_name_and_an_even_number_has_the_worse_median():
    assert choose(table([0.5] * 4)[::-1], "dice", True) == Chosen("case_0", "case_1", "case_3")


def test_the_table_holds_every_case_in_full_precision(tmp_path):
    write(tmp_path, table()[::-1])
    with open(tmp_path / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["case"] for r in rows] == [f"case_{i}" for i in range(5)]
    assert [float(r["hd95_mm"]) for r in rows] == [1 / 3 + i for i in range(5)]
    assert list(rows[0]) == ["case", "patient", "dice", "hd95_mm"]


def test_means_stand_with_their_interval_and_numbers(tmp_path):
    write(tmp_path, seed=5)
    found = json.loads((tmp_path / "metrics.json").read_text())
    expected = bootstrap_mean(DICE, ["p0", "p0", "p1", "p1", "p2"], seed=5)
    assert found["metrics"]["dice"] == vars(expected)
    assert (found["metrics"]["dice"]["cases"], found["metrics"]["dice"]["patients"]) == (5, 3)
    assert (found["worst"], found["median"], found["best"]) == ("case_1", "case_2", "case_0")


def test_the_same_rows_in_any_order_give_the_same_bytes(tmp_path):
    write(tmp_path / "a", labels=LABELS)
    write(tmp_path / "b", table()[::-1], labels=LABELS)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["cases.csv", "cases.png", "metrics.json"]
    assert [(tmp_path / "a" / n).read_bytes() for n in names] == [(tmp_path / "b" / n).read_bytes() for n in names]
    with Image.open(tmp_path / "a" / "cases.png") as image:
        assert image.info == {"Software": "meddiff", "dpi": image.info["dpi"]}


def test_pictures_are_asked_for_the_shown_cases_only_and_each_once(tmp_path):
    asked = []
    write_cases(tmp_path, table(), "dice", True, lambda case: asked.append(case) or pictures(case))
    assert asked == ["case_1", "case_2", "case_0"]
    asked.clear()
    write_cases(tmp_path, table([0.5]), "dice", True, lambda case: asked.append(case) or pictures(case))
    assert asked == ["case_0"]


def test_labels_change_the_picture_in_their_colours_and_the_background_does_not(tmp_path):
    image = np.zeros((40, 40))
    colours = label_colours(LABELS)
    assert list(colours) == ["grey matter", "lesion"]
    for name, number in LABELS.items():
        save_cases(
            tmp_path / f"{number}.png", [("a", [Picture("", image, (0, 1), label=image + number)])], {name: number}
        )
        with Image.open(tmp_path / f"{number}.png") as file:
            pixels = np.asarray(file.convert("RGB")).astype(int)
        centre = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]
        colour = label_colours({name: number}).get(name, (0, 0, 0))
        np.testing.assert_allclose(centre, [127.5 * c for c in colour], atol=2)


def test_many_labels_have_a_colour_each():
    assert len(set(label_colours({f"label {i}": i for i in range(30)}).values())) == 29


def test_a_case_name_is_not_read_as_mathematics(tmp_path):
    write_cases(tmp_path, [{"case": "a$_$b", "patient": "p", "dice": 0.5}], "dice", True, lambda c: pictures("0"))
    assert (tmp_path / "cases.png").exists()


def test_a_table_that_leaves_something_out_is_refused(tmp_path):
    rows = table()
    with pytest.raises(MetricError, match="no case to report"):
        choose([], "dice", True)
    with pytest.raises(MetricError, match="case_1: is in the table twice"):
        choose([*rows, rows[1]], "dice", True)
    with pytest.raises(MetricError, match="case_3: dice is nan"):
        choose([*rows[:3], {**rows[3], "dice": float("nan")}], "dice", True)
    with pytest.raises(MetricError, match="case_4: has other columns than case_0: hd95_mm"):
        choose([*rows[:4], {k: v for k, v in rows[4].items() if k != "hd95_mm"}], "dice", True)
    with pytest.raises(MetricError, match=r"by 'psnr': it was not measured\. Choose one of dice, hd95_mm"):
        choose(rows, "psnr", True)
    with pytest.raises(MetricError, match="at least one metric; found case, dice"):
        choose([{"case": "a", "dice": 1.0}], "dice", True)


def test_pictures_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(MetricError, match="found 4, 3"):
        save_cases(tmp_path / "a.png", [("a", pictures("1")), ("b", pictures("2")[1:])], {})
    crooked = Picture("reference", np.zeros((3, 4)), (0, 1), label=np.zeros((4, 3)))
    with pytest.raises(MetricError, match="reference: the label map has shape"):
        save_cases(tmp_path / "a.png", [("a", [crooked])], {})
