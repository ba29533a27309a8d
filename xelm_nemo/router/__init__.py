from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xelm_nemo.router.router import Router

__all__ = ["Router"]


def __getattr__(name: str) -> Any:
    """`Router`, imported when it is asked for: settings are read without torch."""
    if name != "Router":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from xelm_nemo.router.router import Router

    return Router
