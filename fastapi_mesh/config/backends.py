"""Settings of the backends: where a node finds the others and makes itself known, and where configuration is kept."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path  # pydantic needs it at run time
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from fastapi_mesh.config.fields import Problems, Seconds, shown
from fastapi_mesh.config.problems import suggestion
from fastapi_mesh.config.servers import ServerSettings

BACKENDS = ("local", "static", "memory", "consul", "etcd", "kubernetes", "dns")
ENTRY_POINTS = "fastapi_mesh.discovery"
"""The group of entry points under which other packages offer backends."""

Plain = str | int | float | bool | None


def _backend(name: str) -> str:
    if name in BACKENDS:
        return name
    others = entry_points(group=ENTRY_POINTS).names
    if name not in others:
        known = (*BACKENDS, *sorted(others))
        raise ValueError(f"{shown(name)} is none of {', '.join(known)}{suggestion(name, known)}")
    return name


class DiscoveryConfig(ServerSettings):
    """Where instances are found and registered."""

    OWN: ClassVar[dict[str, tuple[str, ...]]] = {
        "local": ("path", "lease", "heartbeat", "poll_interval"),
        "memory": ("lease", "heartbeat"),
        "static": (),
        "consul": ("lease", "heartbeat"),
        "etcd": ("lease", "heartbeat"),
        "kubernetes": (),
        "dns": (),
    }
    GENERAL: ClassVar[tuple[str, ...]] = ("backend", "chain")

    backend: Annotated[str, AfterValidator(_backend)] = Field(
        default="local",
        description="local: one SQLite file for all processes of this machine. static: only what `services` lists. "
        "memory: only this process, for tests. consul, etcd, kubernetes, dns: that server. Or the name of a backend "
        f"that another package offers (entry point group {ENTRY_POINTS}).",
    )
    path: Path | None = Field(
        default=None,
        description="Backend local: the registry's file; None is fastapi-mesh/registry.db in the user's state folder.",
    )
    lease: Seconds = Field(
        default=15.0, description="Seconds after its last heartbeat until an instance is taken for dead."
    )
    heartbeat: Seconds = Field(
        default=5.0, validate_default=True, description="Seconds between two heartbeats; shorter than `lease`."
    )
    poll_interval: Seconds = Field(
        default=0.2, description="Backend local: seconds between two looks at the registry for changes."
    )
    chain: tuple[DiscoveryConfig, ...] = Field(
        default=(),
        description="Further backends; each is asked for services of which those before it know no instance. "
        "This node registers with the first one that takes registrations.",
    )
    options: dict[str, Plain] = Field(
        default={}, description="Keyword arguments of a backend that another package offers."
    )

    @model_validator(mode="before")
    @classmethod
    def _options_of_others(cls, given: object) -> object:
        """A backend of another package gets what isn't a setting here."""
        if not isinstance(given, Mapping) or str(given.get("backend", "local")) in BACKENDS:
            return given
        foreign = {name: value for name, value in given.items() if name not in cls.model_fields}
        if not foreign:
            return given
        rest = {name: value for name, value in given.items() if name not in foreign}
        options = given.get("options")
        return {**rest, "options": {**(options if isinstance(options, Mapping) else {}), **foreign}}

    @field_validator("heartbeat")
    @classmethod
    def _beats_in_time(cls, heartbeat: float, info: ValidationInfo) -> float:
        lease = info.data.get("lease")
        if lease is not None and heartbeat >= lease:
            raise ValueError(
                f"heartbeat ({heartbeat:g} s) is not shorter than lease ({lease:g} s), "
                "so every instance would expire; lower heartbeat or raise lease"
            )
        return heartbeat


def _store_key(value: str) -> str:
    if not value or value.startswith("/") or ".." in value.split("/") or not value.isprintable():
        # Problems, because an error of a setting called "key" is not shown otherwise: it might be a secret.
        raise Problems([((), f"{value!r} is not a key: letters, '.', '-' and '/' between them, like 'gateway.toml'")])
    return value


StoreKey = Annotated[str, AfterValidator(_store_key)]


StoreBackend = Literal["local", "file", "memory", "consul", "etcd", "kubernetes"]


class StoreConfig(ServerSettings):
    """Where configuration is kept that changes while programs run."""

    OWN: ClassVar[dict[str, tuple[str, ...]]] = {
        "local": ("path", "poll_interval"),
        "file": ("path", "poll_interval"),
        "memory": (),
        "consul": (),
        "etcd": (),
        "kubernetes": (),
    }
    GENERAL: ClassVar[tuple[str, ...]] = ("backend",)

    backend: StoreBackend | None = Field(
        default=None,
        description="local: the SQLite file of the local registry, for all processes of this machine. file: a folder "
        "with one file per key, such as a mounted ConfigMap. memory: only this process. consul, etcd, kubernetes: that "
        "server. None: as `discovery`, with its settings.",
    )
    path: Path | None = Field(
        default=None,
        validate_default=True,
        description="Backend local: the file; None is the local registry's. Backend file: the folder, which it needs.",
    )
    poll_interval: Seconds = Field(
        default=0.25, description="Backends local and file: seconds between two looks for a change."
    )

    @field_validator("path")
    @classmethod
    def _a_folder_has_a_path(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is None and info.data.get("backend") == "file":
            raise ValueError("the backend 'file' needs the folder in which its keys are files")
        return path


class MeshStoreConfig(StoreConfig):
    """Where `mesh.get_config` and `mesh.watch_config` look, and a node's own settings that change while it runs."""

    GENERAL: ClassVar[tuple[str, ...]] = ("backend", "key")

    key: StoreKey | None = Field(
        default=None,
        description="The key of this node's own settings: `defaults`, `policies`, `services`, `drain_delay` and "
        "`inbound_limit` there count over the settings file, and are taken over while the node runs. None: nowhere.",
    )
