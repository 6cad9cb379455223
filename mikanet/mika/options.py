"""What the command lines of Mika's server and client share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from twisted.logger import Logger

from mikanet.errors import ConfigError
from mikanet.mika.session import METHODS, Keys, Profile, derive_keys
from mikanet.service.options import Options
from mikanet.service.secret_files import read_secret

_log = Logger()


class MikaOptions(Options):
    """Password, profile and method."""

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["password-file", None, None, "file whose first line is the password (required)"],
        ["profile", None, "spec", "spec, or go to talk to the original program (protects less)"],
        ["method", None, None, f"cipher: {', '.join(METHODS)} (default aes-256-cfb; the others with --profile go)"],
    ]

    def derive_keys(self) -> Keys:
        """The keys of these options."""
        password = read_secret(self.required("password-file"), bool(self["insecure-ok"]))
        return derive_keys(password, self.profile(), self["method"] or "aes-256-cfb")

    def profile(self) -> Profile:
        """The profile of these options."""
        try:
            return Profile(self["profile"])
        except ValueError:
            raise ConfigError(f"unknown profile {self['profile']!r}: use spec or go") from None


def warn_of_profile(profile: Profile) -> None:
    """Say what profile ``go`` does not protect, once at start."""
    if profile is Profile.GO:
        _log.warn(
            "profile go is compatible with the original program and protects less: "
            "one key stream both ways, a key that is fast to guess; use profile spec between two mikanets"
        )
