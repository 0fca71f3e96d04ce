"""Let all tox environments live in one folder: torch and what belongs to it are then installed once.

tox makes a folder anew when an environment of another name used it before. The environments of `tox.ini` differ in
their commands only, so this runner leaves the name out of what tox compares; everything else (Python, requirements,
extras) is still compared, and a change of it still makes the folder anew.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tox.plugin import impl
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tox.tox_env.register import ToxEnvRegister


class _NamelessInfo(Info):
    @contextmanager
    def compare(self, value: Any, section: str, sub_section: str | None = None) -> Iterator[tuple[bool, Any]]:
        if section == "ToxEnv":
            value = {**value, "name": "shared"}
        with super().compare(value, section, sub_section) as found:
            yield found


class SharedRunner(VirtualEnvRunner):
    """tox's own runner, in a folder shared by environments of other names."""

    @staticmethod
    def id() -> str:
        """Name of this runner in `tox.ini`."""
        return "shared"

    @property
    def cache(self) -> Info:
        """What tox remembers of the folder."""
        return _NamelessInfo(self.env_dir)


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    """Offer the runner to `tox.ini`."""
    register.add_run_env(SharedRunner)
