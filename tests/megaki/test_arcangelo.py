"""How workers are called."""

from __future__ import annotations

import os
import sys

from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import ConfigError
from mikanet.megaki import arcangelo
from mikanet.megaki.arcangelo import Kind, parse_variable, parse_worker


class ParseTests(SynchronousTestCase):
    """Workers in the user's words."""

    def script(self) -> str:
        """A file."""
        path = os.path.abspath(self.mktemp())
        with open(path, "w") as file:
            file.write("")
        return path

    def test_python(self) -> None:
        """A Python file runs in our shell, in its own folder, behind the launcher with all limits."""
        path = self.script()
        command = parse_worker(f"python:{path}", uid=1234)
        self.assertEqual((command.kind, command.folder, command.is_shell), (Kind.PYTHON, os.path.dirname(path), True))
        line = command.command_line()
        self.assertEqual(line[0], sys.executable)
        self.assertEqual(os.path.basename(line[3]), "launch.py")
        self.assertEqual(line[4], f"1234,{256 * 1024 * 1024},64,0,{os.getpid()}")
        self.assertEqual([os.path.basename(each) for each in line[-2:]], ["shell.py", os.path.basename(path)])

    def test_php(self) -> None:
        """A PHP file runs under php in our shell."""
        self.patch(arcangelo, "find_program", lambda name: f"/usr/bin/{name}")
        line = parse_worker(f"php:{self.script()}").command_line()
        self.assertIn("/usr/bin/php", line)
        self.assertEqual(line[4], f"-1,{256 * 1024 * 1024},64,0,{os.getpid()}")
        self.assertTrue(os.path.exists(line[-2]))

    def test_exec(self) -> None:
        """A command is split as a shell would, and may start processes of its own."""
        command = parse_worker("exec:cat -u 'a b'", memory=0)
        self.assertFalse(command.is_shell)
        self.assertEqual(command.arguments[1:], ["-u", "a b"])
        self.assertEqual(command.command_line()[4], f"-1,0,64,-1,{os.getpid()}")

    def test_environment(self) -> None:
        """Nothing of our environment reaches a worker but what it needs to find programs and to speak."""
        self.patch(os, "environ", {"PATH": "/bin", "SECRET": "x", "LANG": "C"})
        self.assertEqual(parse_worker("exec:/bin/cat").environment(), {"PATH": "/bin", "LANG": "C"})

    def test_variables(self) -> None:
        """Variables that the operator names are passed on: with a value, or with the one that the server has."""
        self.patch(os, "environ", {"PATH": "/bin", "DATABASE": "here"})
        self.assertEqual(parse_variable("A=b=c"), ("A", "b=c"))
        self.assertEqual(parse_variable("EMPTY="), ("EMPTY", ""))
        variables = dict([parse_variable("DATABASE"), parse_variable("PATH=/opt")])
        command = parse_worker("exec:/bin/cat", variables=variables)
        self.assertEqual(command.environment(), {"PATH": "/opt", "DATABASE": "here"})
        self.assertNotIn("here", repr(command))
        for text in ("", "=x", "MISSING", "a b=c", "ä=x"):
            self.assertRaises(ConfigError, parse_variable, text)

    def test_scripts_that_cannot_run(self) -> None:
        """A script that its interpreter cannot read is refused with the place and the reason, in one line."""
        path = self.script()
        with open(path, "w") as file:
            file.write("def on_handle(request):\n    return (\n")
        with self.assertRaises(ConfigError) as caught:
            parse_worker(f"python:{path}")
        self.assertRegex(str(caught.exception), rf"{path} line \d: '\(' was never closed: correct it")
        with open(path, "wb") as binary:
            binary.write(b"x = 1\0")
        self.assertRaises(ConfigError, parse_worker, f"python:{path}")
        php = self.script()
        with open(php, "w") as file:
            file.write(f"#!/bin/sh\necho 'Parse error: strange in {path} on line 3'\nexit 255\n")
        os.chmod(php, 0o700)
        self.patch(arcangelo, "find_program", lambda name: php)
        with self.assertRaises(ConfigError) as caught:
            parse_worker(f"php:{path}")
        self.assertIn(f"Parse error: strange in {path} on line 3: correct it", str(caught.exception))

    def test_mistakes(self) -> None:
        """Each mistake is one line."""
        for text in ("", "php", "php:", "perl:x", "php:/not/there", "python:/tmp", "exec:", "exec:'", "exec:no-such-x"):
            with self.assertRaises(ConfigError, msg=text):
                parse_worker(text)
