"""Line searches: one interface (`LineSearch` on a `Line`), one method a file."""

from __future__ import annotations

from convexlab.errors import MisuseError, unknown_name
from convexlab.optim.line_search.brent import Brent
from convexlab.optim.line_search.golden_section import GoldenSection
from convexlab.optim.line_search.hager_zhang import HagerZhang
from convexlab.optim.line_search.interface import Line, LineSearch, SearchResult, Trial
from convexlab.optim.line_search.strong_wolfe import StrongWolfe

__all__ = [
    "Brent",
    "GoldenSection",
    "HagerZhang",
    "Line",
    "LineSearch",
    "SearchResult",
    "StrongWolfe",
    "Trial",
    "build_line_search",
    "line_search_names",
]

_SEARCHES: dict[str, type[LineSearch]] = {
    "golden-section": GoldenSection,
    "brent": Brent,
    "strong-wolfe": StrongWolfe,
    "hager-zhang": HagerZhang,
}


def line_search_names() -> tuple[str, ...]:
    """Return the names that `build_line_search` knows."""
    return tuple(_SEARCHES)


def build_line_search(search: str | LineSearch) -> LineSearch:
    """Return the line search of that name with its default settings, or ``search`` itself if it is one already.

    Raises:
        MisuseError: no such name, or neither a name nor a line search.
    """
    if isinstance(search, LineSearch):
        return search
    if not isinstance(search, str):
        raise MisuseError(
            f"line_search must be a name or a LineSearch, got {type(search).__name__}. "
            f"Names: {', '.join(_SEARCHES)}; or build one, such as HagerZhang(sigma=0.5)."
        )
    if search not in _SEARCHES:
        raise unknown_name("line search", search, _SEARCHES)
    return _SEARCHES[search]()
