"""Folders of one iteration each, `<folder>/iter_<n>`: training states, and the best weights."""

import re
from pathlib import Path

KIND = "iter"


def iteration_folder(folder: Path, iteration: int, kind: str = KIND) -> Path:
    """Where what belongs to an iteration is, or will be."""
    return folder / f"{kind}_{iteration:07d}"


def iteration_folders(folder: Path, kind: str = KIND) -> dict[int, Path]:
    """The folders that there are, which are whole, by iteration, ascending."""
    matches = ((re.fullmatch(rf"{kind}_(\d+)", path.name), path) for path in folder.glob(f"{kind}_*"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))
