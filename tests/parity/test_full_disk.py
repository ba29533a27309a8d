"""A conversion that runs out of room says so in one line, and leaves nothing."""

import subprocess
import sys

from tests.helpers.variants import random_variant
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.hf import import_hf

# A limit on the size of a file fails as a full disk does, in the middle of a write.
PROGRAM = """
import resource, sys
from pathlib import Path
from xelm_nemo.artifacts import Recipe, build
from xelm_nemo.checkpoint import distributed_files
from xelm_nemo.checkpoint.hf import export_hf, import_hf
from xelm_nemo.checkpoint.metaseq_export import export_metaseq
from xelm_nemo.checkpoint.model_folder import copy_weights
from xelm_nemo.errors import XelmError

root = Path(sys.argv[1])


def copy():
    with build(root / "out/copied", Recipe("export", {})) as part:
        copy_weights(root / "model", part)


resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for convert in (
    lambda: import_hf(root / "hf", root / "out/imported", Recipe("model", {})),
    lambda: export_hf(root / "model", root / "out/exported", tokenizer=None),
    lambda: export_metaseq(root / "model", root / "out/metaseq"),
    copy,
):
    try:
        convert()
    except XelmError as error:
        sys.stdout.write(f"{error}\\n")
"""


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    random_variant("xglm_relu_8x").save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "model", Recipe("model", {}))
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    for line, name in zip(lines, ("imported", "exported", "metaseq", "copied"), strict=True):
        assert f"{tmp_path / 'out' / name} cannot be written (" in line
        assert "File too large" in line
    assert list((tmp_path / "out").iterdir()) == []
