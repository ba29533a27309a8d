"""Where NeMo's tests run, and the small things that they share."""

import contextlib
import importlib.util

import pytest

needs_nemo = [
    pytest.mark.nemo,
    pytest.mark.skipif(
        importlib.util.find_spec("nemo") is None, reason="NeMo is not installed; run `make test-nemo`"
    ),
]


def small_config(architecture, shape, **settings):
    """NeMo's configuration of a model of ours."""
    from xelm_nemo.nemo.models import ARCHITECTURES, config_settings

    return ARCHITECTURES[architecture][0](**config_settings(shape), **settings)


@contextlib.contextmanager
def leaves_nothing(folder):
    """The block adds no file to the folder."""
    before = set(folder.iterdir())
    yield
    assert set(folder.iterdir()) == before
