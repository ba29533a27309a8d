"""The tasks that the package knows, and their data: rows in files, a folder a task.

    DIR/<task>/test.jsonl     what is scored
    DIR/<task>/train.jsonl    where demonstrations are drawn from; only few-shot evaluation needs it

A task is `<family>` or `<family>_<language>`; a family's file, `data/tasks/<family>.yaml`, is in the form of
lm-evaluation-harness, and says under `metadata` which columns a row has.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from xelm_nemo.errors import CorpusError
from xelm_nemo.evaluation.config import SAMPLE, TASKS, family_of
from xelm_nemo.files import sha256


@dataclass(frozen=True)
class Task:
    """One task with its data.

    Attributes:
        name: such as "xnli_de".
        settings: what its family's file says.
        files: "test", and for demonstrations "train".
    """

    name: str
    settings: Mapping[str, Any]
    files: Mapping[str, Path]

    def config(self, cache: Path) -> dict[str, Any]:
        """The task as lm-evaluation-harness takes it; `cache` is for what it makes of the files."""
        splits = {"test_split": "test"} | ({"fewshot_split": "train"} if "train" in self.files else {})
        data = {
            "data_files": {split: str(path) for split, path in self.files.items()},
            "cache_dir": str(cache),
        }
        return {**self.settings, "task": self.name, "dataset_kwargs": data, **splits}

    def stamp(self) -> dict[str, Any]:
        """What its outcome depends on, the model left aside."""
        return {"name": self.name, "settings": dict(self.settings), "data": self._hashes}

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return {split: sha256(path) for split, path in self.files.items()}


def data_folder(name: str) -> Path:
    """The folder of the tasks' data; "sample" is the one that comes with the package."""
    return _package_folder() / SAMPLE if name == SAMPLE else Path(name)


def find_tasks(names: Sequence[str], folder: Path, *, num_fewshot: int, demo_lang: str | None) -> list[Task]:
    """The tasks of these names, those of a family in every language that there is data for.

    Args:
        names: of `config.TASKS`, or one of these with `_<language>`.
        folder: of the data.
        num_fewshot: demonstrations before each example; 0 needs no training rows.
        demo_lang: the language to take demonstrations from; None takes the task's own.

    Raises:
        CorpusError: data that is missing, or a row that is not as the task needs it.
    """
    found: dict[str, Task] = {}
    for name in names:
        members = [name] if name not in TASKS else _members(name, folder)
        if not members:
            place = f"{name}_<language>" if TASKS[name] else name
            raise CorpusError(f"{folder} has no data for {name}; put it into {folder / place}/test.jsonl.")
        for member in members:
            found[member] = _task(member, folder, num_fewshot, demo_lang)
    return list(found.values())


def _task(name: str, folder: Path, num_fewshot: int, demo_lang: str | None) -> Task:
    family = family_of(name)
    settings = yaml.safe_load((_package_folder() / f"{family}.yaml").read_text(encoding="utf-8"))
    has_lang = name != family
    shown = f"{family}_{demo_lang}" if demo_lang and has_lang else name
    places = {"test": folder / name / "test.jsonl", "train": folder / shown / "train.jsonl"}
    wanted = {split: path for split, path in places.items() if split == "test" or num_fewshot}
    counts = {split: _check_rows(path, settings["metadata"]) for split, path in wanted.items()}
    if counts.get("train", num_fewshot) < num_fewshot:
        raise CorpusError(
            f"{wanted['train']} has {counts['train']} rows, and evaluation.num_fewshot={num_fewshot}; "
            "add rows, or ask for fewer demonstrations."
        )
    return Task(name, settings, wanted)


def _members(family: str, folder: Path) -> list[str]:
    """The tasks of a family that have a folder, none of another family whose name begins alike."""
    names = [path.parent.name for path in sorted(folder.glob("*/test.jsonl"))]
    return [name for name in names if family_of(name) == family]


def _check_rows(path: Path, wanted: Mapping[str, Any]) -> int:
    """How many rows a file has, each of them complete and with an answer that is a choice."""
    if not path.is_file():
        raise CorpusError(f"{path} is not there; write one JSON object a line, with {wanted['columns']}.")
    count = 0
    with path.open(encoding="utf-8") as lines:
        for count, line in enumerate(lines, start=1):
            if problem := _row_problem(line, wanted):
                raise CorpusError(f"{path}:{count}: {problem}.")
    if count == 0:
        raise CorpusError(f"{path} is empty; write one JSON object a line, with {wanted['columns']}.")
    return count


def _row_problem(line: str, wanted: Mapping[str, Any]) -> str | None:
    try:
        row = json.loads(line)
    except ValueError:
        return "this line is no JSON; write one JSON object a line"
    if not isinstance(row, dict):
        return "this line is no JSON object; write one a line"
    if missing := [column for column in wanted["columns"] if row.get(column) in (None, "")]:
        return f"the row lacks {', '.join(missing)}; give it all of {wanted['columns']}"
    answers = row[wanted["answers"]] if isinstance(wanted["answers"], str) else wanted["answers"]
    if not isinstance(answers, list) or row[wanted["answer"]] not in answers:
        return f"{wanted['answer']}={row[wanted['answer']]!r} is none of {answers}"
    return None


def _package_folder() -> Path:
    return Path(str(files("xelm_nemo") / "data/tasks"))
