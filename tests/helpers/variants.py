"""Every kind of model that a Hugging Face folder may hold, small: the quirks of the published ones."""

import torch

from tests.helpers.random_opt import LIKE_350M, NARROW, PRE_NORM, random_opt
from tests.helpers.random_xglm import GELU, RELU, random_xglm

RANDOM = {"xglm": random_xglm, "opt": random_opt}
# Name -> (architecture, settings).
VARIANTS = {
    "xglm_gelu": ("xglm", GELU),
    "xglm_relu_8x": ("xglm", RELU),
    "opt_pre_norm": ("opt", PRE_NORM),
    "opt_like_350m": ("opt", LIKE_350M),
    "opt_narrow_gelu": ("opt", NARROW),
}


def random_variant(name):
    """A model of this kind, the same at every call."""
    architecture, settings = VARIANTS[name]
    torch.manual_seed(0)
    return RANDOM[architecture](**settings)
