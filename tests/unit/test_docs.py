"""Every command, target, experiment and link that the documentation names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE = re.compile(r"```.*?\n(.*?)```|`([^`\n]+)`", re.DOTALL)
MODULE = re.compile(r"python\S* -m (xelm_nemo(?:\.\w+)+)")
TARGET = re.compile(r"(?:^|[|&;]|\s\s)\s*make ([a-z][a-z-]*)", re.MULTILINE)
EXPERIMENT = re.compile(r"\+experiment=(\w+)")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")


def code_in(page):
    """The text of code blocks and code spans."""
    return "\n".join(block or span for block, span in CODE.findall(page))


def targets_of_makefile():
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def is_command(module):
    """Whether `python -m <module>` has something to run."""
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def missing(page, folder):
    """Everything a page names that is not in the repository."""
    code = code_in(page)
    return [
        *(f"python -m {module}" for module in MODULE.findall(code) if not is_command(module)),
        *(f"make {target}" for target in TARGET.findall(code) if target not in targets_of_makefile()),
        *(
            f"+experiment={name}"
            for name in EXPERIMENT.findall(code)
            if not (ROOT / "configs/experiment" / f"{name}.yaml").is_file()
        ),
        *(link for link in LINK.findall(page) if not (folder / link).exists()),
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_names_nothing_that_is_missing(path):
    assert missing(path.read_text(encoding="utf-8"), path.parent) == []


@pytest.mark.parametrize(
    "page, found",
    [
        ("run `python -m xelm_nemo.fly`", "python -m xelm_nemo.fly"),
        ("```bash\nmake tea\n```", "make tea"),
        ("`make tea`", "make tea"),
        ("`python3 -m xelm_nemo +experiment=nothing`", "+experiment=nothing"),
        ("[page](docs/nothing.md#part)", "docs/nothing.md"),
    ],
)
def test_planted_name_of_nothing_is_caught(page, found):
    assert missing(page, ROOT) == [found]


def test_every_target_of_the_makefile_says_what_it_does():
    lines = re.findall(r"^[a-z][a-z-]*:.*", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [line for line in lines if "## " not in line] == []
