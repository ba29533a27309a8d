"""Hugging Face folders to NeMo checkpoints and back, in NeMo's own `import_ckpt` and `export_ckpt`."""

import logging
from pathlib import Path
from typing import Any

from nemo.lightning import io

from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.architectures import read_shape
from xelm_nemo.checkpoint.facts import WEIGHTS, load_facts
from xelm_nemo.checkpoint.hf import export_hf, import_hf, resolve_source
from xelm_nemo.checkpoint.nemo import read_nemo_facts
from xelm_nemo.checkpoint.nemo_context import read_context
from xelm_nemo.checkpoint.pickles import check_pickles
from xelm_nemo.corpus.tokenizer import check_special_ids, has_tokenizer, load_tokenizer
from xelm_nemo.files import atomic_folder, remove
from xelm_nemo.model.config import ModelConfig
from xelm_nemo.nemo.context import write_context
from xelm_nemo.nemo.cpu import enter
from xelm_nemo.nemo.models import OPTModel, XGLMModel

log = logging.getLogger(__name__)


@io.model_importer(XGLMModel, "hf")
@io.model_importer(OPTModel, "hf")
class HFImporter(io.ModelConnector):
    """A Hugging Face folder or hub id of an XGLM or OPT, to become a NeMo checkpoint."""

    def shape(self) -> ModelConfig:
        """What config.json describes."""
        return read_shape(resolve_source(str(self)))

    def apply(self, output_path: Path, **_: Any) -> Path:
        """Write the checkpoint; on an error, special tokens with other ids among them, no folder is left."""
        folder = resolve_source(str(self))
        tokenizer = folder if has_tokenizer(folder) else None
        if tokenizer is None:
            log.warning("%s has no tokenizer, and the checkpoint gets none.", self)
        else:
            check_special_ids(load_tokenizer(tokenizer), tokenizer)
        with atomic_folder(Path(output_path)) as part:
            model = part / "model"
            import_hf(folder, model, Recipe("model", {}))
            (model / WEIGHTS).rename(part / WEIGHTS)
            write_context(part, load_facts(model), tokenizer=tokenizer)
            remove(model)
        return Path(output_path)


@io.model_exporter(XGLMModel, "hf")
@io.model_exporter(OPTModel, "hf")
class HFExporter(io.ModelConnector):
    """A NeMo checkpoint of an XGLM or OPT, to become a Hugging Face folder."""

    def nemo_load(self, path: Path, *args: Any, **kwargs: Any) -> Any:
        """NeMo's own; `export_ckpt` calls it first, in order to look for a state of ModelOpt."""
        check_pickles(Path(path) / WEIGHTS)
        enter()
        return super().nemo_load(path, *args, **kwargs)

    def apply(self, output_path: Path, **_: Any) -> Path:
        """Write the folder; on an error none is left behind."""
        facts = read_nemo_facts(Path(self))
        tokenizer = read_context(Path(self)).tokenizer
        if tokenizer is None:
            log.warning("%s has no tokenizer, and the folder gets none.", self)
        export_hf(Path(self), Path(output_path), tokenizer=tokenizer, facts=facts)
        return Path(output_path)
