"""What the classes behind `TfidfVectorizer` do that it does not show; the numbers are held to there."""

import contextlib
import threading
import time

import numpy as np
import pytest

from xelm_nemo._csrc import AnalyzerSettings, TermCounter, Tfidf

WORDS = AnalyzerSettings(characters=False, drops_numbers=True, shortest=1, longest=1)


def counter(folder, memory_bytes=1, num_threads=1):
    return TermCounter(WORDS, [], num_threads=num_threads, memory_bytes=memory_bytes, folder=str(folder))


def test_tables_go_to_disk_when_they_are_full_and_not_before(tmp_path):
    roomy = counter(tmp_path, memory_bytes=1 << 20)
    roomy.add(["one two", "two three"])
    assert list(tmp_path.iterdir()) == []
    tight = counter(tmp_path)
    tight.add(["one two", "two three"])
    assert len(list(tmp_path.iterdir())) == 2
    for counted in (roomy, tight):
        terms, documents = counted.all()
        assert (terms, documents.tolist()) == (["one", "three", "two"], [1, 1, 2])
        assert counted.occurrences(2).tolist() == [1, 1]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_files_are_joined_before_there_are_too_many_to_open(tmp_path, num_threads):
    many = counter(tmp_path, num_threads=num_threads)
    for number in range(300):
        many.add([f"both mine{number}"])
    assert len(list(tmp_path.iterdir())) <= 64
    terms, documents = many.all()
    assert terms == ["both", *sorted(f"mine{number}" for number in range(300))]
    assert documents.tolist() == [300] + 300 * [1]


def test_counting_goes_on_after_a_question(tmp_path):
    counted = counter(tmp_path, memory_bytes=1 << 20)
    counted.add(["one two"])
    assert counted.all()[0] == ["one", "two"]
    counted.add(["four two", "one"])
    assert counted.all()[0] == ["four", "one", "two"]
    assert counted.at(np.array([1, 2]))[0] == ["one", "two"]
    assert counted.num_documents == 3


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match="nowhere/0 cannot be written: No such file or directory"):
        counter(tmp_path / "nowhere").add(["one two"])


def test_a_file_that_is_cut_off_is_named(tmp_path):
    cut = counter(tmp_path)
    cut.add(["one two"])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="0 cannot be read"):
        cut.all()


@contextlib.contextmanager
def ticks():
    """Yield a list that a Python thread lengthens every millisecond in which it may run."""
    found, over = [], threading.Event()

    def tick():
        while not over.wait(0.001):
            found.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("method", ["fit", "transform"])
def test_other_python_threads_run_meanwhile(tmp_path, method):
    texts = [" ".join(f"w{n:x}" for n in range(500_000))] * 8
    counted = counter(tmp_path, memory_bytes=1 << 30)
    counted.add(["w0 w1 w2"])
    fitted = Tfidf(WORDS, [], counted.all()[0], np.ones(3))
    calls = {"fit": counted.add, "transform": lambda some: fitted.transform(some, num_threads=1)}
    with ticks() as found:
        start = time.perf_counter()
        calls[method](texts)
        end = time.perf_counter()
    assert sum(start < at < end for at in found) >= 10  # with the lock held there would be none


def test_terms_and_idf_have_to_belong_together():
    with pytest.raises(ValueError, match="2 terms, of which 1 are distinct"):
        Tfidf(WORDS, [], ["one", "one"], np.ones(2))
    with pytest.raises(ValueError, match="1 terms, of which 1 are distinct, with 2 idf"):
        Tfidf(WORDS, [], ["one"], np.ones(2))
