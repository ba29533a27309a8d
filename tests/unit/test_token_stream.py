"""The endless stream of a training run, against a list that the test writes out."""

from itertools import chain

import numpy as np
import pytest

from xelm_nemo.errors import ArtifactError
from xelm_nemo.shards.dataset import TokenStream, has_tokens

SEQ_LENGTH = 5


def write_shard(folder, documents):
    """A shard of documents in a new folder; its prefix."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    folder.mkdir()
    builder = IndexedDatasetBuilder(f"{folder / 'train'}.bin", dtype=np.uint16)
    for document in documents:
        builder.add_document(np.array(document, dtype=np.uint16), [len(document)])
    builder.finalize(f"{folder / 'train'}.idx")
    return folder / "train"


@pytest.fixture
def shards(tmp_path):
    """Two shards of documents whose tokens are all different, and the documents."""
    ends = np.cumsum([3, 7, 1, 12, 2]).tolist()
    documents = [list(range(start, end)) for start, end in zip([0, *ends], ends, strict=False)]
    prefixes = [
        write_shard(tmp_path / "cluster0", documents[:3]),
        write_shard(tmp_path / "cluster1", documents[3:]),
    ]
    return prefixes, documents


def blocks(stream, count):
    return [stream.block(index).tolist() for index in range(count)]


def test_without_a_seed_documents_come_in_order_and_start_again(shards):
    prefixes, documents = shards
    endless = [*chain(*documents)] * 3
    expected = [endless[start : start + SEQ_LENGTH + 1] for start in range(0, 50, SEQ_LENGTH)]
    assert blocks(TokenStream(prefixes, SEQ_LENGTH, seed=None), 10) == expected


def test_every_token_is_a_target_once_an_epoch(shards):
    prefixes, documents = shards
    stream = TokenStream(prefixes, SEQ_LENGTH, seed=1)
    assert stream.num_tokens == 25 and stream.num_blocks == 5
    targets = [token for block in blocks(stream, 5) for token in block[1:]]
    first, after = stream.block(0)[0], stream.block(5)[0]
    assert sorted([first, *targets]) == sorted([*chain(*documents), after])


def test_every_epoch_has_an_order_of_its_own_and_keeps_documents_whole(shards):
    prefixes, documents = shards
    stream = TokenStream(prefixes, 25, seed=1)
    epochs = [stream.block(index).tolist()[:-1] for index in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) > 1
    for epoch in epochs:
        for document in documents:
            start = epoch.index(document[0])
            assert epoch[start : start + len(document)] == document


def test_a_block_does_not_depend_on_what_was_read_before(shards):
    prefixes, _ = shards
    in_order = blocks(TokenStream(prefixes, SEQ_LENGTH, seed=7), 30)
    stream = TokenStream(prefixes, SEQ_LENGTH, seed=7)
    assert [stream.block(index).tolist() for index in reversed(range(30))] == in_order[::-1]


def test_another_seed_gives_another_order(shards):
    prefixes, _ = shards
    one, two = (blocks(TokenStream(prefixes, SEQ_LENGTH, seed=seed), 10) for seed in (1, 2))
    assert one != two


def test_shard_without_documents_among_others_changes_nothing(shards, tmp_path):
    prefixes, _ = shards
    empty = write_shard(tmp_path / "empty", [])
    expected = blocks(TokenStream(prefixes, SEQ_LENGTH, seed=7), 30)
    for place in range(3):
        among = [*prefixes[:place], empty, *prefixes[place:]]
        assert blocks(TokenStream(among, SEQ_LENGTH, seed=7), 30) == expected


def test_shards_without_any_document_are_refused_by_name(tmp_path):
    empty = write_shard(tmp_path / "empty", [])
    assert not has_tokens(empty)
    with pytest.raises(ArtifactError, match=r"empty/train: no tokens"):
        TokenStream([empty], SEQ_LENGTH, seed=None)


def test_missing_shard_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(ArtifactError, match=r"train\.bin and \.idx are missing; run .*xelm_nemo\.shard"):
        TokenStream([tmp_path / "train"], SEQ_LENGTH, seed=None)
