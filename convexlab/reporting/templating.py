"""The templates of pages: every value is escaped, and an undefined one is an error."""

from __future__ import annotations

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from convexlab.reporting.downloads import table_download
from convexlab.wording.numbers import count, number, typeset

__all__ = ["template"]


def template(name: str) -> Template:
    """Return the template of that file name."""
    environment = Environment(
        loader=PackageLoader("convexlab.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "count": count, "sentence": _sentence, "typeset": typeset}
    environment.filters |= {"capitalized": _capitalized}
    environment.filters |= {"as_csv": table_download, "policy_hash": _policy_hash}
    return environment.get_template(name)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _policy_hash(text: str) -> str:
    """Return how a content security policy names the one style sheet or script that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
