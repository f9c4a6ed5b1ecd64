"""The demand of a cast: for its manifest, and for its image."""

from __future__ import annotations

import dataclasses

from protocol.image.manifest import Manifest
from protocol.image.manifest_object import manifest_source_symbols
from protocol.model.session_records import CastParameters
from protocol.sending.transmission.demand import Demand
from protocol.wire.messages import CastObject


@dataclasses.dataclass(frozen=True, slots=True)
class CastDemand:
    """The demand for both objects of a cast."""

    manifest: Demand
    image: Demand

    @classmethod
    def of(cls, parameters: CastParameters, manifest: Manifest) -> CastDemand:
        """Return a demand with nothing wanted."""
        source_symbols = manifest.source_symbols(parameters.symbol_bytes, parameters.tag_bytes)
        return cls(
            Demand(CastObject.MANIFEST, manifest_source_symbols(parameters)),
            Demand(CastObject.IMAGE, source_symbols),
        )

    @property
    def idle(self) -> bool:
        """Return whether all demand has been planned."""
        return self.image.idle and self.manifest.idle

    def for_object(self, object_index: CastObject) -> Demand:
        """Return the demand for one object."""
        return self.image if object_index == CastObject.IMAGE else self.manifest

    def withdraw(self) -> None:
        """Remove all demand: the cast has ended."""
        self.manifest.withdraw()
        self.image.withdraw()
