import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.helpers.random_opt import write_opt_tokenizer, write_published_opt_tokenizer
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.tokenizer import (
    check_special_ids,
    encode_document,
    load_tokenizer,
    train_tokenizer,
)
from xelm_nemo.corpus.udhr import documents
from xelm_nemo.errors import ArtifactError, ConfigError, CorpusError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer((row["text"] for row in documents()), TokenizerConfig(vocab_size=2048), folder)
    return folder


def test_special_tokens_have_xglms_ids_and_the_vocabulary_its_size(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.convert_ids_to_tokens(2047) == "<madeupword6>"
    assert len(tokenizer) == 2048


def test_document_becomes_text_between_two_ends_once_each(folder):
    ids = encode_document(load_tokenizer(folder), "All human beings are born free.")
    assert (ids[0], ids[-1]) == (2, 2)
    assert 2 not in ids[1:-1] and 0 not in ids


def test_document_ends_once_where_the_tokenizer_appends_an_end_by_itself(tmp_path):
    """As newer versions of XGLM's tokenizer do."""
    from tokenizers.processors import TemplateProcessing

    words = load_tokenizer(write_opt_tokenizer(["All human beings"], tmp_path))
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="</s> $A </s>", special_tokens=[("</s>", 2)]
    )
    assert words("All human beings").input_ids[-1] == 2
    ids = encode_document(words, "All human beings")
    assert (ids[0], ids[-1], ids.count(2)) == (2, 2, 2)


def test_published_special_tokens_are_asserted(tmp_path):
    words = load_tokenizer(write_opt_tokenizer(["All human beings"], tmp_path))
    check_special_ids(words, tmp_path)
    words.eos_token = "<unk>"
    with pytest.raises(ArtifactError, match=r"documents would end with '<unk>', .* end with '</s>'"):
        check_special_ids(words, tmp_path)


def test_special_tokens_with_other_ids_are_named(tmp_path):
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>"]
    words = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(ArtifactError, match=r"ids {'<s>': 1, '<pad>': 0, .*; set tokenizer.path=DIR"):
        check_special_ids(tokenizer, tmp_path)


OTHER_ORDER = ("<pad>", "<s>", "</s>", "<unk>")


def test_opts_own_files_give_its_ids_and_a_document_between_two_ends(tmp_path):
    words = load_tokenizer(write_published_opt_tokenizer(["All human beings are born free."], tmp_path))
    assert type(words).__name__ == "GPT2Tokenizer"
    assert (words.bos_token_id, words.pad_token_id, words.eos_token_id) == (2, 1, 2)
    text = "All human beings"
    assert words(text).input_ids[0] == 2 and words(text).input_ids.count(2) == 1
    assert encode_document(words, text) == [*words(text).input_ids, 2]


@pytest.mark.parametrize("write", [write_opt_tokenizer, write_published_opt_tokenizer])
def test_opt_tokenizer_is_loaded_with_and_without_its_fast_file(tmp_path, write):
    ids = encode_document(load_tokenizer(write(["All human beings"], tmp_path)), "All human beings")
    assert (ids[0], ids[-1], ids.count(2), 0 in ids) == (2, 2, 2, False)


def test_opt_tokenizer_with_other_ids_is_refused_in_one_line(tmp_path):
    write_opt_tokenizer(["All human beings"], tmp_path, special=OTHER_ORDER)
    said = r"ids {'<s>': 1, '<pad>': 0, [^\n]*; set tokenizer.path=DIR[^\n]*$"
    with pytest.raises(ArtifactError, match=said):
        load_tokenizer(tmp_path)


def test_tokenizer_of_opts_kind_with_an_end_of_its_own_is_another_models(tmp_path):
    special = ("<pad>", "<|endoftext|>")
    write_opt_tokenizer(["All human beings"], tmp_path, special=special, end="<|endoftext|>")
    words = load_tokenizer(tmp_path)
    assert encode_document(words, "All human beings")[0] == words.eos_token_id == 1


def test_text_comes_back_with_newlines_as_spaces(folder):
    tokenizer = load_tokenizer(folder)
    ids = encode_document(tokenizer, "Human rights\nand freedom")
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "Human rights and freedom"


def test_training_twice_gives_the_same_bytes(folder, tmp_path):
    train_tokenizer((row["text"] for row in documents()), TokenizerConfig(vocab_size=2048), tmp_path)
    model = "sentencepiece.bpe.model"
    assert (tmp_path / model).read_bytes() == (folder / model).read_bytes()


def test_vocabulary_that_cannot_hold_the_characters_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size=100 does not train"):
        train_tokenizer((row["text"] for row in documents()), TokenizerConfig(vocab_size=100), tmp_path)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_one_letter_is_enough_to_train_on(tmp_path, kind):
    train_tokenizer(["\u200b", "a"], TokenizerConfig(kind=kind), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert max(encode_document(tokenizer, "a")) < len(tokenizer) < 20


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_texts_without_a_visible_character_are_refused(tmp_path, kind):
    with pytest.raises(CorpusError, match=r"no visible character"):
        train_tokenizer(["\u200b", "\ufffd"], TokenizerConfig(kind=kind), tmp_path)


def test_document_of_more_than_a_mebibyte_is_trained_on(tmp_path):
    train_tokenizer(["人権 " * 150_000], TokenizerConfig(kind="bpe"), tmp_path)
    assert 3 not in encode_document(load_tokenizer(tmp_path), "人権"), "<unk>"


def test_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.kind='word' is not known"):
        train_tokenizer(["text"], TokenizerConfig(kind="word"), tmp_path)


def test_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
