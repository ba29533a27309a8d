"""Words that say little about what a text is about, by language."""

from collections.abc import Sequence

from xelm_nemo.errors import ConfigError


def stop_words(languages: Sequence[str]) -> tuple[str, ...]:
    """The stop words of these languages together, each once, in alphabetical order.

    The lists are those of the package stopwordsiso (stopwords-iso.com, MIT).

    Raises:
        ConfigError: a language that it has no list for.
    """
    if not languages:
        return ()
    import stopwordsiso

    known = stopwordsiso.langs()
    unknown = [language for language in languages if language not in known]
    if unknown:
        raise ConfigError(
            f"clustering.stop_words={list(languages)} has {unknown}, for which there are no stop words; "
            f"use codes among {' '.join(sorted(known))}."
        )
    return tuple(sorted(stopwordsiso.stopwords(list(languages))))
