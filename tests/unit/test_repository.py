"""The repository holds to its own rules: what lies where, what is installed, what is never written."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {
    *("xelm_nemo", "kernels", "csrc", "configs", "tests", "docs", ".ci"),
    *("setup.py", "pyproject.toml", "constraints.txt", "MANIFEST.in", "Makefile"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    *(".gitignore", ".pre-commit-config.yaml"),
}
PYTHON = sorted(path for top in ("xelm_nemo", "kernels") for path in (ROOT / top).rglob("*.py"))
# The only files that know pickle: restricted readers, with a stand-in for every class that a file names, and
# what writes clusterers for the original programs.
QUARANTINED = {
    "xelm_nemo/checkpoint/pickles.py",
    *("xelm_nemo/clustering/unpickle.py", "xelm_nemo/clustering/upstream_pickles.py"),
    "xelm_nemo/clustering/upstream_writer.py",
}
PICKLE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_ARGUMENTS = {"weights_only=False", "allow_pickle=True"}
CEILINGS = {"xelm_nemo": 400, "kernels": 350, "tests": 500}
ELSEWHERE = re.compile(r"(?<![\w.$}])/(?:root|home|Users|work|mnt)/|(?:extra-)?index-url|find-links")


def name_of(path):
    return str(path.relative_to(ROOT))


def repository_files():
    """Every file that is committed, or would be."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    run = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if run.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in run.stdout.split("\0") if name and (ROOT / name).is_file()]


def list_in_setup(name):
    """The list or dictionary assigned to `name` in setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py assigns no {name}")


def distribution(requirement):
    """The normalised name at the start of a requirement."""
    return re.match(r"[\w.-]*", requirement).group().lower().replace("_", "-")


def pickle_uses(source):
    """One sentence for each way in which a file would read or write a pickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = node.module if isinstance(node, ast.ImportFrom) else None
            tops = {(origin or alias.name).split(".")[0] for alias in node.names}
            found += [f"line {node.lineno} imports {top}" for top in sorted(tops & PICKLE_MODULES)]
        elif isinstance(node, ast.keyword) and f"{node.arg}={ast.unparse(node.value)}" in UNSAFE_ARGUMENTS:
            found.append(f"line {node.lineno} sets {node.arg}={ast.unparse(node.value)}")
    return found


def test_top_level_is_what_the_readme_promises():
    assert {path.relative_to(ROOT).parts[0] for path in repository_files()} == TOP_LEVEL


def test_every_package_is_installed():
    folders = (path.parent.relative_to(ROOT) for path in (ROOT / "xelm_nemo").rglob("__init__.py"))
    here = {".".join(folder.parts) for folder in folders}
    assert set(list_in_setup("PACKAGES")) == here | {"xelm_kernels", "xelm_configs"}


def test_folders_that_are_renamed_on_installation_are_no_packages_in_place():
    assert not [folder for folder in ("kernels", "configs") if (ROOT / folder / "__init__.py").exists()]


def test_constraints_are_exact_versions_from_no_particular_place():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+(; .+)?", line)] == []


def test_every_requirement_is_pinned():
    extras = list_in_setup("EXTRAS")
    del extras["gpu"]  # left to the machine: Transformer Engine has to fit its CUDA
    wanted = [*list_in_setup("REQUIREMENTS"), *(line for lines in extras.values() for line in lines)]
    pinned = {
        distribution(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert {distribution(line) for line in wanted} - pinned == set()


def test_no_requirement_names_the_package_that_only_shares_its_name_with_apex():
    assert not re.search(r"^\W*apex\b", (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert not re.search(r"^apex\b", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_no_pickle_is_read_or_written(path):
    if name_of(path) not in QUARANTINED:
        assert pickle_uses(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source, use",
    [
        ("import pickle as p", "imports pickle"),
        ("def f():\n    from joblib import dump", "imports joblib"),
        ("torch.load(f, weights_only=False)", "sets weights_only=False"),
        ("np.load(f, allow_pickle=True)", "sets allow_pickle=True"),
    ],
)
def test_planted_pickle_is_caught(source, use):
    (found,) = pickle_uses(source)
    assert use in found


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_no_file_holds_what_cannot_stay(path):
    source = path.read_text(encoding="utf-8")
    assert re.findall(r"\bmake_block_ptr\b|\blibdevice\b", source) == [], "the interpreter cannot run these"
    assert re.findall(r"\b(?:TODO|FIXME|XXX)\b(?!\(#\d+\))", source) == [], "name the issue: TODO(#1)"
    stubs = [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and ast.unparse(node.body[-1]).startswith("raise NotImplementedError")
        and len(node.body) <= 2
    ]
    assert stubs == [], "a function that only says it is missing"


def test_no_file_is_longer_than_its_ceiling():
    lengths = {
        name_of(path): (len(path.read_text(encoding="utf-8").splitlines()), ceiling)
        for top, ceiling in CEILINGS.items()
        for path in (ROOT / top).rglob("*.py")
    }
    assert {name: pair for name, pair in lengths.items() if pair[0] > pair[1]} == {}


def test_no_file_names_a_place_on_one_machine_or_a_package_index():
    found = {}
    for path in repository_files():
        if path.suffix in {".jsonl", ".png"} or path == Path(__file__):
            continue
        if hits := ELSEWHERE.findall(path.read_text(encoding="utf-8", errors="replace")):
            found[name_of(path)] = hits
    assert found == {}


def test_installing_without_a_compiler_fails_with_one_line_that_names_a_remedy(tmp_path):
    build = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--force",
        "--build-temp",
        tmp_path,
        "--build-lib",
        tmp_path,
    ]
    environment = {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++", "PATH": "/usr/bin:/bin"}
    run = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode != 0
    assert "CXX='/nonexistent/c++' is not a program on PATH" in run.stderr
    assert "install a C++ compiler" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_plain_installation_finds_kernels_configs_data_and_extension_from_another_folder(tmp_path):
    source, target = tmp_path / "source", tmp_path / "installed"
    for path in repository_files():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, source], check=True)
    program = (
        "from importlib.util import find_spec\n"
        "from importlib.resources import files\n"
        "import xelm_nemo, xelm_nemo._csrc, xelm_kernels.ensemble_log_prob as kernel\n"
        "print(xelm_nemo.__file__, xelm_nemo._csrc.__file__, kernel.__file__,\n"
        "      find_spec('xelm_configs').submodule_search_locations[0] + '/experiment/udhr.yaml',\n"
        "      files('xelm_nemo') / 'data/udhr/udhr.jsonl', files('xelm_nemo') / 'data/tasks/xnli.yaml',\n"
        "      files('xelm_nemo') / 'data/tasks/sample/xnli_de/test.jsonl', sep='\\n')\n"
    )
    environment = {"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for line in run.stdout.splitlines():
        assert Path(line).is_relative_to(target)
        assert Path(line).exists()
    (declared,) = target.glob("xelm_nemo-*.dist-info/entry_points.txt")
    assert "[lm_eval.models]\nxelm = xelm_nemo.evaluation.harness:XelmLM" in declared.read_text()


@pytest.mark.parametrize("module", ["xelm_nemo", "xelm_kernels", "xelm_configs"])
def test_this_installation_finds_its_modules_from_another_folder(module, tmp_path):
    find = f"find_spec({module!r}).submodule_search_locations[0]"
    program = f"from importlib.util import find_spec; print({find})"
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_dir()
