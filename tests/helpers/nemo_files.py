"""NeMo checkpoints of an XGLM or OPT as NeMo writes them, without NeMo."""

import dataclasses
import shutil

import yaml

from xelm_nemo.checkpoint.facts import load_facts

FUNCTIONS = {"gelu": "torch._C._nn.gelu", "relu": "torch.nn.functional.relu"}
MODELS = {"xglm": "XGLM", "opt": "OPT"}


def write_nemo_checkpoint(model_folder, folder, *, tokenizer=None, vocab_size=None):
    """A model folder's weights with a `context/model.yaml` that says what NeMo would say of them."""
    shutil.copytree(model_folder / "weights", folder / "weights")
    (folder / "context").mkdir()
    shape = dataclasses.asdict(load_facts(model_folder).shape)
    name, activation = MODELS[shape.pop("architecture")], shape.pop("activation")
    config = {
        "_target_": f"xelm_nemo.nemo.models.{name}Config",
        "activation_func": {"_call_": False, "_target_": FUNCTIONS[activation]},
        "vocab_size": vocab_size,
        **shape,
    }
    content = {"_target_": f"xelm_nemo.nemo.models.{name}Model", "config": config, "tokenizer": None}
    if tokenizer is not None:
        shutil.copytree(tokenizer, folder / "context/tokenizer")
        content["tokenizer"] = {"pretrained_model_name": "tokenizer"}
    (folder / "context/model.yaml").write_text(yaml.safe_dump(content))
    return folder


def change_context(folder, **values):
    """Overwrite values of a checkpoint's `context/model.yaml`."""
    path = folder / "context/model.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))
