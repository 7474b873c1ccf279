"""Checks that the settings of networks share; each says where, what, and what is allowed."""

from __future__ import annotations

from typing import Final

from vtag.errors import ConfigError

MAX_WIDTH: Final = 1_000_000  # of any layer; beyond it a settings file is damaged or hostile


def require_whole(
    where: str, name: str, value: object, *, least: int = 1, most: int = MAX_WIDTH
) -> None:
    """Refuses all but whole numbers from `least` to `most`; raises ConfigError."""
    # type() and not isinstance: True is an int.
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{where}: {name} is a whole number {least} to {most}, got {value!r}")


def require_chance(where: str, name: str, value: object) -> None:
    """Refuses all but numbers from 0 up to, not including, 1; raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"{where}: {name} is 0 or more and below 1, got {value!r}")


def require_choice(where: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuses all but one of `choices`; raises ConfigError."""
    if value not in choices:
        raise ConfigError(f"{where}: no {name} {value!r}; there are: {', '.join(choices)}")


def require_switch(where: str, name: str, value: object) -> None:
    """Refuses all but True and False; raises ConfigError."""
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {name} is true or false, got {value!r}")
