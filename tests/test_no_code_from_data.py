"""Nothing of ours runs code that comes with data: no call that could is anywhere in the package or the scripts."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "meddiff").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch.hub"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
}
METHODS = {"extractall", "unpack_archive"}
ARGUMENTS = {("weights_only", False), ("allow_pickle", True), ("shell", True)}


def risks(text):
    """What is dangerous in some code, one line each."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = []
        yield from (f"{node.lineno}: import {name}" for name in names if {name, name.partition(".")[0]} & MODULES)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            constants = {(k.arg, k.value.value) for k in node.keywords if isinstance(k.value, ast.Constant)}
            if name in CALLS or name.rpartition(".")[2] in METHODS or name.startswith(("torch.hub.", "pickle.")):
                yield f"{node.lineno}: {name}(...)"
            if name == "torch.load" and ("weights_only", True) not in constants:
                yield f"{node.lineno}: torch.load without weights_only=True"
            yield from (f"{node.lineno}: {arg}={value}" for arg, value in constants & ARGUMENTS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_runs_code_from_data(path):
    assert list(risks(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from torch import hub",
        "import cloudpickle as c",
        "eval(text)",
        "exec(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "archive.extractall(folder)",
        "subprocess.run(text, shell=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_what_runs_code_is_found(text):
    assert list(risks(text))
