"""Held-out documents of random tokens, and a model that notes how they stand together."""

import random

from tests.helpers.megatron_cpu import VOCAB_SIZE


def random_documents(lengths, draw):
    """Documents of so many tokens each."""
    from xelm_nemo.evaluation.documents import EncodedDocument

    return [
        EncodedDocument(tuple(draw.randrange(3, VOCAB_SIZE) for _ in range(length)), length, False)
        for length in lengths
    ]


def mixed_documents(context):
    """Documents of all lengths up to the context, and a few that are longer."""
    draw = random.Random(0)
    lengths = [2, 3, context, context + 1, 3 * context, *(draw.randrange(2, context) for _ in range(60))]
    return random_documents(lengths, draw)


def noting(model, together):
    """A model that adds to `together` how many texts lie end to end in a row."""

    def call(tokens, targets, lengths=None):
        together.append(len(lengths or [1]))
        return model(tokens, targets, lengths)

    return call
