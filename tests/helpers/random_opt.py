"""Small Hugging Face OPTs in which no weight is 0 or 1, and tokenizers like theirs."""

import json

import torch

from tests.helpers.random_xglm import VOCAB_SIZE, randomise

PRE_NORM = {"hidden_size": 48, "num_attention_heads": 3, "ffn_dim": 192, "num_hidden_layers": 3}
# What OPT-350M alone has: norms after the sums, none at the end, and embeddings narrower than layers.
LIKE_350M = {
    **{"hidden_size": 32, "num_attention_heads": 2, "ffn_dim": 128, "num_hidden_layers": 2},
    **{"do_layer_norm_before": False, "word_embed_proj_dim": 16},
}
NARROW = {**LIKE_350M, "do_layer_norm_before": True, "activation_function": "gelu"}


def random_opt(*, vocab_size=VOCAB_SIZE, max_position_embeddings=64, **settings):
    """A model with every weight, bias and norm drawn at random."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(vocab_size=vocab_size, max_position_embeddings=max_position_embeddings, **settings)
    return randomise(OPTForCausalLM(config))


OPT_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # under the ids from 0


def write_opt_tokenizer(texts, folder, vocab_size=VOCAB_SIZE, *, special=OPT_SPECIAL, end="</s>"):
    """A byte-level BPE with OPT's special tokens, which puts its end before a text by itself."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import GPT2TokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    added = [AddedToken(token, special=True) for token in special]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=added, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, special.index(end))]
    )
    tokenizer = GPT2TokenizerFast(
        tokenizer_object=bpe, bos_token=end, eos_token=end, unk_token=end, pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    return folder


def write_published_opt_tokenizer(texts, folder):
    """The same in the files of OPT as published: no tokenizer.json, and a setting puts `</s>` in front."""
    write_opt_tokenizer(texts, folder)
    (folder / "tokenizer.json").unlink()
    path = folder / "tokenizer_config.json"
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "errors": "replace"}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def without_head(model, folder):
    """Save the model as `OPTModel`, whose weights have shorter names, as some published checkpoints do."""
    model.model.save_pretrained(folder)
    assert not any(name.startswith("model.") for name in names_in(folder))


def names_in(folder):
    """The names of the weights in a folder."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


def position_rows(folder):
    """The position table in a folder."""
    from safetensors.torch import load_file

    table: torch.Tensor = load_file(folder / "model.safetensors")["model.decoder.embed_positions.weight"]
    return table
