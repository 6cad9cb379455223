"""``mikanet passwd NAME --password-file FILE``: the line of a user for Pickaxe's users file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mikanet.errors import ConfigError
from mikanet.pickaxe.keys import Kdf, Secret, normal_user
from mikanet.pickaxe.users import format_user
from mikanet.service.options import Options as BaseOptions
from mikanet.service.secret_files import read_secret


class Options(BaseOptions):
    """Options of ``mikanet passwd``."""

    command = "mikanet passwd"
    synopsis = "NAME --password-file FILE [options]"
    longdesc = "Prints the line that lets a user in: append it to the server's users file, which has mode 0600."

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["password-file", None, None, "file whose first line is the user's password (required)"],
        [
            "kdf",
            None,
            "mikanet",
            "how keys come from the password: mikanet, or draft, which stores the password itself",
        ],
    ]

    user: str
    secret: Secret

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """See :meth:`Options.parseOptions`; the name may stand before the options."""
        words = None if options is None else list(options)
        if words and not words[0].startswith("-"):
            words = [*words[1:], "--", words[0]]
        super().parseOptions(words)

    def parseArgs(self, *names: str) -> None:
        """The user's name."""
        if len(names) != 1:
            raise ConfigError("say whose line: mikanet passwd NAME --password-file FILE")
        self.user = normal_user(names[0])

    def check(self) -> None:
        """See :meth:`Options.check`."""
        try:
            kdf = Kdf(self["kdf"])
        except ValueError:
            raise ConfigError(f"--kdf is mikanet or draft, not {self['kdf']!r}") from None
        password = read_secret(self.required("password-file"), bool(self["insecure-ok"]))
        self.secret = Secret.of_password(kdf, self.user, password)


def run(options: Options) -> int:
    """Print the line."""
    try:
        print(format_user(options.user, options.secret))
    except ConfigError as problem:
        raise SystemExit(f"{options.command}: {problem}") from None
    return 0
