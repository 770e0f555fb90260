import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from meddiff import config as c
from meddiff.config import Config
from meddiff.config_file import load_config, parse_config
from meddiff.diffusion.denoiser import PARAMETERIZATIONS
from meddiff.diffusion.noise import NOISES
from meddiff.diffusion.samplers import SAMPLERS
from meddiff.diffusion.sigmas import GRIDS, TRAINING
from meddiff.errors import ConfigError

TREE = {
    "task": "synthesis",
    "data": {"manifest": "x.jsonl", "spacing_mm": [4, 4], "size": [64, 64]},
    "network": {"spatial_dims": 2, "channels": [32, 64]},
    "train": {"steps": 10},
}


def changed(**changes):
    tree = {k: dict(v) if isinstance(v, dict) else v for k, v in TREE.items()}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        tree.setdefault(section, {})[key] = value
    return tree


def test_config_survives_a_round_trip_through_yaml(tmp_path):
    config = parse_config(
        changed(
            diffusion__training={"kind": "uniform_t"}, data__intensity={"kind": "window", "low": -1000, "high": 1000}
        ),
        "x",
    )
    (tmp_path / "c.yaml").write_text(config.dump())
    assert load_config(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__step": 5}, r"unknown key train\.step; did you mean steps\?"),
        ({"data__manifst": 5}, r"unknown key data\.manifst; did you mean manifest\?"),
        (
            {"diffusion__training": {"kind": "lognormal", "sd": 1}},
            r"unknown key diffusion\.training\.sd; did you mean std\?",
        ),
        ({"data__zzz": 5}, r"unknown key data\.zzz; known keys: manifest, modality"),
        ({"network__channels": [30, 64]}, r"channels\[0\] = 30 does not divide by norm_groups = 8; use 32"),
        ({"network__attention": [True]}, "channels has 2, attention 1"),
        ({"data__size": [64, 64, 64]}, "data.size has 3 axes, network.spatial_dims is 2"),
        ({"data__size": [1, 64]}, "too small for 2 levels"),
        ({"data__spacing_mm": [4]}, "data.spacing_mm has 1 values; give 2"),
        ({"train__batch": 10, "train__accumulate": 3}, "accumulate = 3 must divide batch = 10"),
        ({"train__precision": "half"}, r"train\.precision: .*'fp32', 'bf16' or 'fp16'.*found 'half'"),
        ({"data__intensity": {"kind": "window", "low": 5, "high": 1}}, "low must be below high"),
        ({"sample__sigma_max": 0.001}, "sigma_min = 0.01 must be below"),
        ({"condition__classes": {"column": "a", "label": "b"}}, "give either column"),
        ({"condition__classes": {"colum": "a"}}, r"unknown key condition\.classes\.colum; did you mean column\?"),
        ({"condition__mask": True, "data__paired": True}, "condition.mask gives the label map"),
        ({"condition__classes": {"label": "a"}, "data__labels": ["b"]}, "a is none of data.labels"),
        ({"condition__mask": True, "train__reference": 4}, "unconditional or by class; set it to 0"),
        ({"condition__image": {"modality": "T1", "intensity": {"kind": "window", "low": 1, "high": 0}}}, "low must be"),
        ({"train__steps": 0}, r"train\.steps: .*greater than or equal to 1; found 0"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(changed(**changes), "x.yaml")


def test_conditions_are_for_synthesis():
    for changes in ({"condition__mask": True}, {"data__paired": True}):
        with pytest.raises(ConfigError, match="are for synthesis; task is segmentation"):
            parse_config(changed(**changes) | {"task": "segmentation"}, "x.yaml")


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as e:
        parse_config(changed(train__step=5, data__sizes=3), "x.yaml")
    assert str(e.value).count("unknown key") == 2


def test_overrides_reach_into_sections(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(TREE))
    config = load_config(path, ["train.steps=7", "sample.sampler=heun", "data.size=[32, 48]"])
    assert (config.train.steps, config.sample.sampler, config.data.size) == (7, "heun", (32, 48))
    for wrong, message in [
        ("steps", "expected a key and a value"),
        ("task.a=1", "holds a value"),
        ("train.a=[", "not valid YAML"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_config(path, [wrong])


def test_unreadable_files_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "no.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="should be a mapping"):
        load_config(tmp_path / "list.yaml")


def test_yaml_that_would_run_code_is_refused(tmp_path):
    (tmp_path / "evil.yaml").write_text("task: !!python/object/apply:os.system ['touch pwned']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "evil.yaml")


def test_the_names_in_the_config_are_those_of_the_mathematics():
    def choices(section, key):
        return set(get_args(section.model_fields[key].annotation))

    assert choices(c.DiffusionConfig, "parameterization") == set(PARAMETERIZATIONS)
    assert choices(c.DiffusionConfig, "noise") == set(NOISES)
    assert choices(c.SampleConfig, "sampler") == set(SAMPLERS)
    assert choices(c.SampleConfig, "grid") == set(GRIDS)
    kinds = {get_args(m.model_fields["kind"].annotation)[0] for m in (c.LogNormal, c.UniformT, c.LogitNormal)}
    assert kinds == set(TRAINING)


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("configs/*.yaml")), ids=lambda p: p.name)
def test_every_published_config_is_valid(path):
    assert isinstance(load_config(path), Config)


def test_reading_a_config_needs_neither_torch_nor_monai():
    code = "import meddiff.config, sys; sys.exit(any(m in sys.modules for m in ('torch', 'monai', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
