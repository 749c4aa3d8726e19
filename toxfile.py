"""A tox plugin: a runner that lets several tox environments live in one virtual environment.

tox makes an ``env_dir`` anew whenever it was last used under another name. An environment with torch takes about 65 s
and 5.5 GB, so those that want the same packages share one, which is made anew only when the packages change.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tox.plugin import impl
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister


class NamelessInfo(Info):
    """What tox remembers of an environment, without the name it was made under."""

    def compare(
        self, value: Any, section: str, sub_section: str | None = None
    ) -> AbstractContextManager[tuple[bool, Any | None]]:
        """Compare as tox does, but take two names for the same environment."""
        if section == "ToxEnv":
            value = {**value, "name": None}
        return super().compare(value, section, sub_section)


class SharedRunner(VirtualEnvRunner):
    """tox's own runner of virtual environments but for the name: ``runner = shared``."""

    @staticmethod
    def id() -> str:
        """Return the name that tox.ini calls it by."""
        return "shared"

    @property
    def cache(self) -> Info:
        """What tox remembers of the environment."""
        return NamelessInfo(Path(self.conf["env_dir"]))


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    """Tell tox of the runner."""
    register.add_run_env(SharedRunner)
