"""What the package's own source never does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vpretrain

pytestmark = pytest.mark.security
SOURCES = sorted(Path(vpretrain.__file__).parent.rglob("*.py"))

MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.unsafe_load",
}
CALLS |= {"yaml.full_load", "os.popen", "tarfile.extractall", "shutil.unpack_archive"}
KEYWORDS = {("allow_pickle", True), ("shell", True), ("trust_remote_code", True), ("weights_only", False)}


def offences(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [name] if name in CALLS or name.endswith((".extractall", ".extract")) else []
            if name.endswith((".from_pretrained", ".from_config")) and "trust_remote_code" not in {
                k.arg for k in node.keywords
            }:
                found.append(f"{name} without trust_remote_code")  # transformers would ask, and wait
            found += [
                f"{k.arg}={k.value.value}"
                for k in node.keywords
                if isinstance(k.value, ast.Constant) and (k.arg, k.value.value) in KEYWORDS
            ]
    return found


@pytest.mark.promise("14 no pickle, eval, unsafe load or shell in the source")
def test_nothing_in_the_source_can_run_what_it_reads(fault):
    assert len(SOURCES) > 80
    for path in SOURCES:
        with fault():
            assert offences(path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "eval(text)", "torch.load(file)", "yaml.load(text, Loader)",
        "np.load(file, allow_pickle=True)", "run(command, shell=True)", "tar.extractall(path)", "os.system(text)",
        "load(name, trust_remote_code=True)", "AutoModel.from_pretrained(name)",
    ],
)  # fmt: skip
def test_each_would_be_found(line):
    assert offences(line)
