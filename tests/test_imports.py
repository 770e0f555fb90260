"""The import rule of the design, read from the imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "meddiff"
BASE = {"errors", "seeds"}
ALLOWED = {  # what a package may import of ours
    "__main__": {"cli"},
    "errors": set(),
    "seeds": set(),
    "settings": set(),
    "audit_config": {"settings"},
    "baseline_config": {"settings"},
    "degradation_config": {"settings"},
    "intensity_config": {"settings"},
    "condition_config": {"settings", "intensity_config"},
    "privacy_config": {"settings"},
    "distil_config": {"settings"},
    "config": {
        "errors",
        "settings",
        "audit_config",
        "baseline_config",
        "degradation_config",
        "intensity_config",
        "condition_config",
        "privacy_config",
        "distil_config",
    },
    "config_file": {"errors", "config", "baseline_config", "degradation_config"},
    "diffusion": BASE,
    "imaging": BASE,
    "data": BASE | {"config", "condition_config", "intensity_config", "imaging"},
    "networks": BASE | {"config", "diffusion", "imaging", "data"},
    "tasks": BASE
    | {"config", "condition_config", "degradation_config", "intensity_config", "diffusion", "imaging", "data"},
    "metrics": BASE | {"config", "diffusion", "imaging", "data"},
    "baselines": BASE | {"config", "baseline_config", "diffusion", "networks", "tasks"},
    "engines": BASE
    | {
        "config",
        "config_file",
        "baseline_config",
        "degradation_config",
        "intensity_config",
        "diffusion",
        "imaging",
        "data",
        "networks",
        "tasks",
        "metrics",
        "baselines",
    },
    "privacy": BASE | {"config", "audit_config", "diffusion", "imaging", "data", "networks", "tasks", "metrics"},
    "report": BASE
    | {"config", "audit_config", "diffusion", "imaging", "data", "networks", "tasks", "metrics", "engines", "privacy"}
    | {"baselines"},
    "cli": BASE
    | {"config", "config_file", "diffusion", "imaging", "data", "networks", "tasks", "metrics", "engines", "report"}
    | {"privacy"},
}
ONLY = {  # where a library may be imported
    "pydicom": {"imaging", "privacy"},
    "highdicom": {"imaging"},
    "nibabel": {"imaging"},
    "SimpleITK": {"imaging"},
    "ignite": {"engines", "metrics", "report", "cli"},
    "typer": {"cli"},
    "opacus": {"engines"},
}
FILES = sorted(ROOT.rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "meddiff":
                yield from (f"meddiff.{alias.name}" for alias in node.names)


def package(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = package(path)
    if own == "__init__":
        return
    for name in imported(path):
        first, *rest = name.split(".")
        if first == "meddiff" and rest:
            assert rest[0] == own or rest[0] in ALLOWED[own], f"{path.name} imports {name}"
        assert own in ONLY.get(first, {own}), f"{path.name} imports {name}"


def test_diffusion_imports_torch_and_the_standard_library_only():
    for path in sorted((ROOT / "diffusion").glob("*.py")):
        for name in imported(path):
            assert name.split(".")[0] in {
                "torch",
                "meddiff",
                "collections",
                "dataclasses",
                "functools",
                "itertools",
                "math",
                "operator",
                "typing",
            }


def test_geometry_is_numpy_and_errors_only():
    ours = [name for name in imported(ROOT / "imaging" / "geometry.py") if name.startswith("meddiff")]
    assert ours == ["meddiff.errors"]
