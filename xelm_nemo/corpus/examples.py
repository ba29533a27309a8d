"""Examples of instruction data, a source and its target, as documents whose target alone is learned.

As c-BTM's instruction task makes them: the source without spaces at its end, a space, the target without
white space at its end. Its tokens are those of this text; the source's are as many as the source has alone.
"""

from typing import Any

import numpy as np


def example_text(source: str, target: str) -> tuple[str, str]:
    """The text of an example, and the part of it that is its source."""
    source = source.rstrip(" ")
    return f"{source} {target.rstrip()}", source


def num_source_tokens(example: Any, source: Any) -> Any:
    """How many of an example's tokens are not learned.

    Args:
        example: tokens of the example, `</s>` at both ends; an integer, or an array of them.
        source: tokens of its source alone, `</s>` at both ends.

    Returns:
        the first `</s>` and the source's tokens; never all, for the last `</s>` is the target's.
    """
    return np.minimum(source, example) - 1
