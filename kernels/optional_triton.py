"""Triton's two modules, or stand-ins on a platform that Triton has no build for (macOS).

A kernel file imports `triton` and `tl` from here, so that it can be imported everywhere and its
public function can fall back on its plain torch definition.
"""

from types import SimpleNamespace

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:
    # Just enough for the `@triton.jit` lines and their annotations; nothing launches these kernels.
    triton = SimpleNamespace(jit=lambda kernel: kernel)
    tl = SimpleNamespace(constexpr=int)

__all__ = ["tl", "triton"]
