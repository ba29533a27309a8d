"""What passes between stages: folders with a manifest that says what they were made from.

A folder is an artifact when it holds `manifest.json`, which is written last, inside a folder that
takes its final name only when it is whole. Stages know each other only through these folders:

    corpus/               {train,valid,test}/<shard>/*.jsonl
    clusterer/            tf-idf vocabulary, SVD and centroids, or the language tree
    clusters/             <split>/<shard>/<file>.jsonl of {"sp_id": "<path>|<line>", "cluster": k}
    tokenizer/            a Hugging Face tokenizer folder
    tokens/               cluster<k>/{train,valid}.{bin,idx}
    seed_model/           weights/ (distributed checkpoint) and model.json
    experts/round<r>/     expert<k>/, dense/, and set.json
    evaluation/           result.json, report.md, plots
    export/               one Hugging Face folder an expert
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xelm_nemo.errors import ArtifactError
from xelm_nemo.files import (
    WORK,
    atomic_folder,
    begin_folder,
    begun_folder,
    fingerprint,
    read_json,
    room_for,
    sha256_each,
    write_json,
)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What an artifact is made from; two equal recipes give the same artifact.

    Attributes:
        kind: what the artifact is, for example "clusterer".
        settings: the options that shape it, JSON values only.
        inputs: name -> the file or folder that it is made from.
    """

    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Path] = dataclasses.field(default_factory=dict)

    def stamp(self) -> dict[str, Any]:
        """The recipe as it is recorded in a manifest, inputs reduced to size and time or to a digest."""
        inputs = {name: _stamp(path) for name, path in self.inputs.items()}
        return {"kind": self.kind, "settings": dict(self.settings), "inputs": inputs}


def is_current(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder is whole and was made by this very recipe from inputs that have not changed."""
    if not (folder / MANIFEST).is_file():
        return False
    manifest = read_json(folder / MANIFEST)
    if not _is_ours(manifest) or manifest["format_version"] != FORMAT_VERSION:
        return False
    return fingerprint(manifest["recipe"]) == fingerprint(recipe.stamp())


@contextlib.contextmanager
def build(folder: Path, recipe: Recipe, *, resumable: bool = False) -> Iterator[Path]:
    """Yield a folder to fill; on success it gets a manifest and takes its name in one step.

    It is empty; or, if `resumable`, as an earlier build by the same recipe left it that did not end. Such a
    build keeps its notes in `files.WORK` within it, which does not become part of the artifact.

    Raises:
        ArtifactError: the folder holds something that is no artifact, which would be lost; or there is no
            room for it.
    """
    stamp = recipe.stamp()  # before the work: inputs that change meanwhile make the artifact stale
    check_replaceable(folder, recipe.kind)
    with atomic_folder(folder, resume=fingerprint(stamp) if resumable else None) as part:
        yield part
        write_manifest(part, stamp)


def begin(folder: Path, recipe: Recipe) -> None:
    """Make the folder that a resumable `build` by this recipe will fill, for others to work in before.

    Raises:
        ArtifactError: as `build`.
    """
    check_replaceable(folder, recipe.kind)
    with room_for(folder):
        begin_folder(folder, fingerprint(recipe.stamp()))


def begun(folder: Path, recipe: Recipe) -> Path:
    """The folder that `begin` has made for this recipe.

    Raises:
        ArtifactError: there is none, or it is for another recipe.
    """
    part = begun_folder(folder, fingerprint(recipe.stamp()))
    if part is None:
        raise ArtifactError(
            f"{folder} has not been begun, or its inputs have changed since; run the command again."
        )
    return part


def check_replaceable(folder: Path, kind: str) -> None:
    """See that making an artifact here would delete nothing but an earlier artifact of its kind.

    Raises:
        ArtifactError: there is a file of this name, a folder with files and no manifest, or an artifact of
            another kind.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
        raise ArtifactError(
            f"{folder} holds files that are not this program's; move them, or name another folder."
        )
    found = read_json(folder / MANIFEST)["recipe"]["kind"] if (folder / MANIFEST).is_file() else kind
    if found != kind:
        raise ArtifactError(
            f"{folder} holds a {found}, which would be lost; move it, or name another folder."
        )


def write_manifest(folder: Path, stamp: Mapping[str, Any]) -> None:
    """Record the recipe's stamp and the hash of every file in the folder; marks the folder as whole."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST]
    files = [p for p in files if p.relative_to(folder).parts[0] != WORK]
    entries = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, sha256_each(files), strict=True)
    }
    # The digest speaks of content only: an input that was touched but not changed makes its artifact
    # be built again, and nothing after it.
    digest = fingerprint([FORMAT_VERSION, stamp["kind"], stamp["settings"], entries])
    manifest = {"format_version": FORMAT_VERSION, "recipe": stamp, "files": entries, "digest": digest}
    write_json(folder / MANIFEST, manifest)


def check(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of an artifact of this kind.

    Raises:
        ArtifactError: the folder is missing, not whole, of another kind or of another format version, or its
            manifest is damaged.
    """
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder} holds no finished {kind}; run the command that makes it first.")
    manifest = _read(folder)
    found = manifest["recipe"]["kind"]
    if found != kind:
        raise ArtifactError(f"{folder} holds a {found}, not a {kind}; give the folder of a {kind}.")
    if manifest["format_version"] != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder} has format version {manifest['format_version']}, this program reads {FORMAT_VERSION}; "
            "delete it and run the command that makes it again."
        )
    return manifest


def verify(folder: Path) -> None:
    """Hash every file of an artifact again.

    Raises:
        ArtifactError: names the first file that is missing or whose bytes changed, or a damaged manifest.
    """
    recorded = {folder / name: entry["sha256"] for name, entry in _read(folder)["files"].items()}
    for path in recorded:
        if not path.is_file():
            raise ArtifactError(
                f"{path} is missing; delete {folder} and run the command that makes it again."
            )
    for path, found in zip(recorded, sha256_each(list(recorded)), strict=True):
        if found != recorded[path]:
            raise ArtifactError(f"{path} has changed since it was made; delete {folder} and run again.")


def _stamp(path: Path) -> Any:
    digest = _digest(path)
    if digest is not None:
        return digest
    if path.is_dir():
        return {str(p.relative_to(path)): _stamp(p) for p in sorted(path.rglob("*")) if p.is_file()}
    if not path.exists():
        raise ArtifactError(f"{path} is missing; run the command that makes it first.")
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _digest(folder: Path) -> str | None:
    """The digest of an artifact; None for other folders, those with a foreign `manifest.json` among them."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = read_json(folder / MANIFEST)
    except ArtifactError:
        return None
    return str(manifest["digest"]) if _is_ours(manifest) else None


def _read(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    if not _is_ours(manifest):
        raise ArtifactError(
            f"{folder / MANIFEST} is not as this program writes it; delete {folder} and run the command that "
            "makes it again."
        )
    return manifest


def _is_ours(manifest: Any) -> bool:
    """Whether a JSON value is as `write_manifest` writes it."""
    if (
        not isinstance(manifest, dict)
        or not {"format_version", "recipe", "files", "digest"} <= manifest.keys()
    ):
        return False
    recipe, files = manifest["recipe"], manifest["files"]
    return isinstance(recipe, dict) and "kind" in recipe and isinstance(files, dict)
