"""The daemon's configuration, complete and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import pydantic
from pydantic import Field

from sender.config.sections import (
    CapturesSection,
    CastsSection,
    HistorySection,
    LibrarySection,
    LogSection,
    MetricsSection,
    NetworkSection,
    Section,
    ServerSection,
    WakeSection,
)


class ServerConfig(Section):
    """The daemon's configuration; ``ServerConfig()`` is that of an empty file."""

    server: ServerSection = Field(default_factory=ServerSection)
    network: NetworkSection = Field(default_factory=NetworkSection)
    library: LibrarySection = Field(default_factory=LibrarySection)
    casts: CastsSection = Field(default_factory=CastsSection)
    captures: CapturesSection = Field(default_factory=CapturesSection)
    wake: WakeSection = Field(default_factory=WakeSection)
    history: HistorySection = Field(default_factory=HistorySection)
    metrics: MetricsSection = Field(default_factory=MetricsSection)
    log: LogSection = Field(default_factory=LogSection)

    @pydantic.model_validator(mode="after")
    def _fill_in(self) -> Self:
        """Set the defaults that depend on the state directory."""
        state = self.server.state_directory
        if not self.server.database:
            database = f"sqlite:///{state.absolute() / 'diskcast.db'}"
            self._put("server", database=database)
        changes: dict[str, object] = {}
        if not self.library.folders:
            changes["folders"] = (state / "images",)
        if self.library.cache_directory == Path():
            changes["cache_directory"] = state / "cache"
        self._put("library", **changes)
        return self

    @pydantic.model_validator(mode="after")
    def _check_ports(self) -> Self:
        port = self.server.endpoint[1]
        if port in self.network.control_port_range:
            raise ValueError(
                f"server.listen uses port {port}, which is one of network.control_ports {self.network.control_ports}: "
                "change one of them"
            )
        return self

    def _put(self, section: str, **changes: object) -> None:
        """Replace a section during validation, before this object is published."""
        self.__dict__[section] = getattr(self, section).model_copy(update=changes)


def sections() -> dict[str, type[Section]]:
    """Return the tables of the file by name, in order."""
    found = {name: field.annotation for name, field in ServerConfig.model_fields.items()}
    return {
        name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Section)
    }
