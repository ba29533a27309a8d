"""Small Hugging Face XGLMs in which no weight is 0 or 1, in folders as `save_pretrained` writes them."""

import json

import torch

VOCAB_SIZE = 300  # no multiple of 128
GELU = {"d_model": 48, "attention_heads": 3, "ffn_dim": 192, "num_layers": 3, "activation_function": "gelu"}
RELU = {"d_model": 32, "attention_heads": 2, "ffn_dim": 256, "num_layers": 2, "activation_function": "relu"}


def random_xglm(*, vocab_size=VOCAB_SIZE, **settings):
    """A model with every weight, bias and norm drawn at random."""
    from transformers import XGLMConfig, XGLMForCausalLM

    return randomise(
        XGLMForCausalLM(XGLMConfig(vocab_size=vocab_size, max_position_embeddings=64, **settings))
    )


def randomise(model):
    """The model with random weights, in which nothing is at its initial 0 or 1, ready to compute."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def logits_of(model, tokens):
    """Next-token logits [B, S, V] of a Hugging Face model."""
    with torch.no_grad():
        return model(tokens).logits


def random_tokens(length, batch_size=2):
    """Token ids [B, S], the padding id among them: it is a token like any other here."""
    tokens = torch.randint(VOCAB_SIZE, (batch_size, length))
    tokens[:, 0], tokens[0, -1] = 2, 1
    return tokens


def change_config(folder, **settings):
    """Overwrite settings in a folder's config.json; None removes one."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def change_weights(folder, change):
    """Rewrite a folder's safetensors with the dictionary that `change` returns."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = change({name: tensor.clone() for name, tensor in load_file(path).items()})
    save_file(tensors, path, metadata={"format": "pt"})
