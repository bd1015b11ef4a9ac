"""Settings from several sources, one over the other, each value knowing where it was set."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import BaseModel

from fastapi_mesh.config.overlay import merge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.config.problems import Location


@dataclass(slots=True)
class SettingsLayer:
    """What one source says: a tree of plain values, and for some places in it a text that names where they stand."""

    data: dict[str, object] = field(default_factory=dict)
    origins: dict[Location, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def copy(self) -> SettingsLayer:
        """The same, to be changed."""
        return SettingsLayer(deepcopy(self.data), dict(self.origins), list(self.problems))

    def put(self, location: Location, value: object, origin: str) -> None:
        """Set one value; tables on the way are made. Does nothing below a value that is no table, which is wrong."""
        table = self.data
        for step in location[:-1]:
            if table.get(str(step)) is None:
                table[str(step)] = {}
            below = table[str(step)]
            if not isinstance(below, dict):
                return
            table = below
        name = str(location[-1])
        before = table.get(name)
        table[name] = merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
        self.origins[location] = origin

    def reach(self, location: Location) -> int:
        """How many steps of `location` exist here."""
        here: object = self.data
        for count, step in enumerate(location):
            if isinstance(here, list):
                here = dict(enumerate(here))
            if not isinstance(here, Mapping) or step not in here:
                return count
            here = here[step]
        return len(location)

    def origin(self, location: Location) -> str:
        """Where the value at `location`, or the nearest table around it, was set; "" if nobody noted it."""
        for end in range(len(location), 0, -1):
            if location[:end] in self.origins:
                return self.origins[location[:end]]
        return ""


def plain(value: object) -> object:
    """`value` with models turned into what was set in them, so that tables can be merged."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def merged(layers: Sequence[SettingsLayer]) -> dict[str, object]:
    """All layers as one tree; later ones win."""
    data: dict[str, object] = {}
    for layer in layers:
        data = merge(data, layer.data)
    return data


def origin_in(layers: Sequence[SettingsLayer], location: Location) -> str:
    """Where the value at `location` came from: the last layer that has it, or most of the way to it."""
    best, reached = "", 0
    for layer in layers:
        if (reach := layer.reach(location)) and reach >= reached:
            best, reached = layer.origin(location[:reach]), reach
    return best
