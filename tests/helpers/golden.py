"""Files that hold what a command printed when a person last looked at it."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class GoldenFiles:
    """Compares text with files of a folder, or writes them when `rewrite` is set."""

    folder: Path
    rewrite: bool = False

    def check(self, name, text):
        """Fail unless the file `name` is there and holds exactly `text`."""
        path = self.folder / name
        if self.rewrite:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; write it with `make golden` and look at it."
        expected = path.read_text(encoding="utf-8")
        assert text == expected, f"{path} differs; if the change is meant, write it with `make golden`."
