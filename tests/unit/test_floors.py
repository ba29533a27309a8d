"""Every import points down. The order below is the architecture; a new edge upward fails here."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ENTRY_POINTS = {
    *("cluster", "shard", "branch", "train", "evaluate", "generate", "export"),
    *("prepare", "status", "cancel", "retry", "simulate"),
}
# Ground floor first. Members of one floor may not import each other: a sideways need is the sign that
# a piece belongs one floor lower. `settings` stands for every config.py that lies in a unit's folder.
FLOORS = [
    {"kernels", "_csrc", "errors"},
    {"files", "command", "device", "settings"},
    {"artifacts", "lock", "log", "parallel"},
    {"corpus", "clustering", "model", "rounds", "launch"},
    {"shards", "checkpoint", "router"},
    {"expert", "ensemble", "merge", "nemo"},
    {"generation"},
    {"config", "evaluation"},
    {"stages", "bench", "simulation"},
    ENTRY_POINTS,
]
FLOOR_OF = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}
# Third-party packages that only the named units may import.
ONLY_IN = {
    "hydra": {"config", *ENTRY_POINTS},
    "lightning": {"nemo"},
    "lm_eval": {"evaluation"},
    "matplotlib": {"evaluation", "simulation"},
    "megatron": {
        *("device", "parallel", "model", "shards", "checkpoint"),
        *("expert", "merge", "nemo", "bench"),
    },
    "nemo": {"nemo"},
    "nemo_run": {"launch"},
    "omegaconf": {"config"},
    "sklearn": {"bench", "clustering"},
    "stopwordsiso": {"clustering"},
    "submitit": {"launch"},
    "transformer_engine": {"model"},
    "transformers": {"corpus", "checkpoint", "generation", "nemo", "bench"},
    "triton": {"kernels", "bench"},
    "wandb": {"expert"},
}
# Entry modules are imported again by every process that Megatron's checkpoint writer spawns.
HEAVY = {"hydra", "lightning", "matplotlib", "megatron", "nemo", "sklearn", "torch", "transformers", "triton"}
SOURCES = sorted([*(ROOT / "xelm_nemo").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def unit_of(relative):
    """The unit that a source file belongs to; None for the package root."""
    parts = relative.parts
    if parts[0] == "kernels":
        return "kernels"
    if len(parts) > 2 and parts[2:] == ("config.py",):
        return "settings"
    unit = parts[1].removesuffix(".py")
    return None if unit == "__init__" else unit


def unit_imported(name):
    """The unit that a dotted name leads to; None outside this project and for the package root."""
    top, *rest = name.split(".")
    if top == "xelm_kernels":
        return "kernels"
    if top != "xelm_nemo" or not rest or rest[0].startswith("__"):
        return None
    return "settings" if rest[1:2] == ["config"] else rest[0]


def imports(source):
    """Yield (dotted name, line, whether for types only) for every import, those in functions included."""
    tree = ast.parse(source)
    type_checking = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for block in node.body
        for inner in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, node in type_checking) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            names = (f"{prefix}.{alias.name}" for alias in node.names)
            yield from ((name, node.lineno, node in type_checking) for name in names)


def violations(relative, source):
    """One sentence for each import of a file that breaks the architecture."""
    me = unit_of(relative)
    if me is not None and me not in FLOOR_OF:
        return [f"{relative}: the unit {me} has no floor yet; place it in FLOORS"]
    found = []
    for name, line, for_types in imports(source):
        where, target, top = f"{relative}:{line}", unit_imported(name), name.split(".")[0]
        if not top:
            found.append(f"{where}: relative import; write the full name")
        elif me is None:
            found.append(f"{where}: the package root holds only the version")
        elif target is not None and target not in FLOOR_OF:
            found.append(f"{where}: imports {target}, which has no floor; place it in FLOORS")
        elif target not in (None, me) and FLOOR_OF[target] >= FLOOR_OF[me]:
            floors = f"{me} (floor {FLOOR_OF[me]}) imports {target} (floor {FLOOR_OF[target]})"
            found.append(f"{where}: {floors}; move what they share to a lower floor")
        elif for_types and target is None:
            continue  # never loaded; a type may point down to anything
        elif me not in ONLY_IN.get(top, {me}):
            found.append(f"{where}: only {', '.join(sorted(ONLY_IN[top]))} may import {top}")
        elif me == "settings" and target is None and top not in sys.stdlib_module_names:
            found.append(f"{where}: settings import only the standard library, not {top}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    assert violations(path.relative_to(ROOT), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "file, line, complaint",
    [
        ("corpus/layout.py", "from xelm_nemo.expert.loop import train", "(floor 3) imports expert (floor 5)"),
        ("corpus/layout.py", "from xelm_nemo import expert", "corpus (floor 3) imports expert (floor 5)"),
        ("corpus/layout.py", "import xelm_nemo.clustering", "corpus (floor 3) imports clustering (floor 3)"),
        ("corpus/layout.py", "if TYPE_CHECKING:\n    from xelm_nemo import expert", "imports expert"),
        ("corpus/layout.py", "def f():\n    import triton", "only bench, kernels may import triton"),
        ("router/config.py", "from xelm_nemo.files import sha256", "imports files (floor 1)"),
        ("router/config.py", "import numpy", "settings import only the standard library, not numpy"),
        ("train.py", "from xelm_nemo.shard import main", "train (floor 9) imports shard (floor 9)"),
        ("train.py", "from . import stages", "relative import"),
        ("misc.py", "import os", "the unit misc has no floor yet"),
        ("train.py", "from xelm_nemo.misc import f", "imports misc, which has no floor"),
        ("__init__.py", "import torch", "the package root holds only the version"),
    ],
)
def test_planted_violation_is_caught(file, line, complaint):
    (found,) = violations(Path("xelm_nemo", file), line)
    assert complaint in found


@pytest.mark.parametrize(
    "file, line",
    [
        ("expert/loop.py", "from xelm_nemo.expert.step import loss"),
        ("expert/loop.py", "from xelm_nemo.model.config import ModelConfig"),
        ("corpus/config.py", "from xelm_nemo.errors import ConfigError"),
        ("evaluation/report.py", "from xelm_nemo import __version__"),
        ("shards/build.py", "if TYPE_CHECKING:\n    from transformers import PreTrainedTokenizerBase"),
        ("config.py", "def compose():\n    from hydra import initialize"),
    ],
)
def test_import_that_points_down_is_allowed(file, line):
    assert violations(Path("xelm_nemo", file), line) == []


def test_design_page_shows_the_same_floors():
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d) \| ([^|]*) \|", page, re.MULTILINE))
    shown = [
        set(re.findall(r"`(?:xelm_nemo\.)?([\w*/]+?)/?(?:\.py)?`", rows[str(n)])) for n in range(len(FLOORS))
    ]
    here = {unit_of(path.relative_to(ROOT)) for path in SOURCES} - {None}
    for units, names in zip(FLOORS[:-1], shown, strict=False):  # the last floor is the commands
        names = {"settings" if name == "*/config" else name for name in names}
        assert (units & here) - names == set()
        assert names - units - {"csrc", "xelm_kernels"} == set()


def test_entry_modules_import_nothing_heavy():
    package = ROOT / "xelm_nemo"
    present = [*(package / f"{name}.py" for name in sorted(ENTRY_POINTS)), *package.rglob("__main__.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in present if path.is_file()]
    program = (
        "import importlib, json, sys\n"
        "seen = {}\n"
        f"for name in {['xelm_nemo', *names]}:\n"
        "    importlib.import_module(name)\n"
        f"    seen[name] = sorted({HEAVY} & set(sys.modules))\n"
        "print(json.dumps(seen))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert {name: heavy for name, heavy in json.loads(run.stdout).items() if heavy} == {}


def test_what_a_run_does_not_always_need_is_imported_when_it_does():
    late = {"megatron", "sklearn", "submitit", "torch.distributed.checkpoint", "transformers"}
    program = (
        "import json, sys\n"
        "import xelm_nemo.stages.pipeline\n"
        f"print(json.dumps(sorted({late} & set(sys.modules))))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == []
