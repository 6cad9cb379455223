"""Packaging: what a checkout, a wheel, an editable install and a source distribution show.

The installing tests take a minute and the package index, so ``tox -e packaging`` runs them and ``trial tests`` does not.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parents[1]

PLUGINS = (
    *("mika-server", "mika-client", "megaki-server", "megaki-client", "paqet-server", "paqet-client"),
    *("nitrosocks-server", "nitrosocks-client"),
)

#: Bounds the time that a build or an installation may take, in seconds.
PATIENCE = 600


def call(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What a command prints; its failure is the test's."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def plugin_names(twistd_help: str) -> set[str]:
    """The subcommands that ``twistd --help`` lists."""
    return set(re.findall(r"^ {4}([a-z][a-z0-9-]*)", twistd_help.partition("Commands:")[2], re.MULTILINE))


def minimum_versions() -> dict[str, str]:
    """The lower bounds in setup.py, by distribution name."""
    call_node = next(
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setup"
    )
    keywords = {keyword.arg: keyword.value for keyword in call_node.keywords}
    extras: dict[str, list[str]] = ast.literal_eval(keywords["extras_require"])
    lines = [*ast.literal_eval(keywords["install_requires"]), *extras["test"]]
    return dict(line.split(">=") for line in lines)


def copy_checkout(target: Path) -> Path:
    """The files that git knows, or would if they were added, in a new folder; that folder."""
    listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    for path in filter(None, listed.split("\0")):
        if (ROOT / path).is_file():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes((ROOT / path).read_bytes())
    return target


_folder = tempfile.TemporaryDirectory(prefix="mikanet-packaging-")


@cache
def build() -> tuple[Path, Path]:
    """A folder for this run, and in it the folder with a source distribution and a wheel.

    The wheel is built from the source distribution, which so proves to be complete.
    """
    folder = Path(_folder.name)
    call(sys.executable, "-m", "build", "--outdir", folder / "dist", copy_checkout(folder / "source"), cwd=folder)
    return folder, folder / "dist"


class SourceTests(SynchronousTestCase):
    """What can be seen without installing anything."""

    def test_no_package_of_twisteds(self) -> None:
        """``twisted/`` and ``twisted/plugins/`` have no ``__init__.py``: those packages belong to Twisted."""
        self.assertEqual(list((ROOT / "twisted").rglob("__init__.py")), [])

    def test_version_is_in_one_piece(self) -> None:
        """The package and its metadata say the same version."""
        from mikanet import __version__

        self.assertIn(f'version="{__version__}"', (ROOT / "setup.py").read_text(encoding="utf-8"))

    def test_minimum_versions_are_tested(self) -> None:
        """tox's mindeps environment installs exactly the lower bounds of setup.py."""
        section = (ROOT / "tox.ini").read_text(encoding="utf-8").partition("[testenv:mindeps]")[2].partition("\n[")[0]
        pinned = dict(re.findall(r"^ +(\S+)==(\S+)$", section, re.MULTILINE))
        self.assertEqual(set(pinned), set(minimum_versions()))
        for name, bound in minimum_versions().items():
            self.assertRegex(pinned[name], rf"^{re.escape(bound)}(\.0)*$", name)

    def test_the_test_command_is_one(self) -> None:
        """README.rst and the CI script run the same test command."""
        command = "python3 -m venv .venv && .venv/bin/python -m pip install tox && .venv/bin/tox"
        for name in ("README.rst", ".ci/run"):
            self.assertIn(command, (ROOT / name).read_text(encoding="utf-8"), name)

    def test_checkout_shows_plugins(self) -> None:
        """With the checkout on PYTHONPATH, twistd lists the plugins, from any folder."""
        with tempfile.TemporaryDirectory() as folder:
            run = "import sys; from twisted.scripts.twistd import run; sys.argv = ['twistd', '--help']; run()"
            text = call(sys.executable, "-c", run, cwd=Path(folder), env={"PYTHONPATH": str(ROOT)})
        self.assertLessEqual(set(PLUGINS), plugin_names(text))


class InstallTests(SynchronousTestCase):
    """What is there after an installation, seen from an empty folder."""

    def setUp(self) -> None:
        """Build once for all tests."""
        if os.environ.get("MIKANET_INSTALL_TESTS") != "1":
            raise SkipTest("installs packages: run tox -e packaging")
        self.folder, self.dist = build()

    def copy_checkout(self, name: str) -> Path:
        """The files of the checkout in a folder of their own."""
        return copy_checkout(self.folder / name)

    def check_installation(self, name: str, *arguments: str | Path) -> Path:
        """Install into a fresh virtual environment and look at it from an empty folder; its path."""
        venv = self.folder / f"venv-{name}"
        empty = self.folder / f"empty-{name}"
        empty.mkdir()
        call(sys.executable, "-m", "venv", venv)
        call(venv / "bin" / "python", "-m", "pip", "install", "--quiet", *arguments, cwd=empty)
        listed = plugin_names(call(venv / "bin" / "twistd", "--help", cwd=empty, env={"PYTHONPATH": ""}))
        self.assertLessEqual(set(PLUGINS), listed)
        for plugin in PLUGINS:
            self.assertIn("--drain-time", call(venv / "bin" / "twistd", plugin, "--help", cwd=empty))
        self.assertIn("genkey", call(venv / "bin" / "mikanet", "--help", cwd=empty))
        self.assertGreaterEqual(len(call(venv / "bin" / "mikanet", "genkey", cwd=empty).strip()), 43)
        script = "from twisted.internet.endpoints import clientFromString as c; c(None, 'host:example.com:80')"
        call(venv / "bin" / "python", "-c", script, cwd=empty)
        self.assertEqual(list(empty.iterdir()), [])
        return venv

    def test_wheel(self) -> None:
        """The wheel, installed in a fresh environment, shows the plugins, the command and the endpoint strings."""
        (wheel,) = self.dist.glob("*.whl")
        self.check_installation("wheel", wheel)

    def test_wheel_holds_what_it_should(self) -> None:
        """The wheel holds every module, the type marker and the plugins, and neither tests nor Twisted's packages."""
        (wheel,) = self.dist.glob("*.whl")
        names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        wanted = {file.relative_to(ROOT).as_posix() for file in (ROOT / "mikanet").rglob("*.py")}
        wanted |= {file.relative_to(ROOT).as_posix() for file in (ROOT / "mikanet").rglob("*.php")}
        wanted |= {"mikanet/py.typed", "twisted/plugins/mikanet_plugins.py"}
        self.assertEqual(wanted - names, set())
        others = {name for name in names - wanted if not re.fullmatch(r"mikanet/_speedups[^/]*\.(so|pyi?|c)", name)}
        self.assertEqual(others, set())

    def test_editable(self) -> None:
        """An editable install shows the same."""
        self.check_installation("editable", "--editable", self.copy_checkout("editable"))

    def test_source_distribution(self) -> None:
        """The source distribution holds what a user needs to read, build and test it."""
        (archive,) = self.dist.glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            names = {name.partition("/")[2] for name in opened.getnames()}
        for name in (
            "README.rst",
            "setup.py",
            "tox.ini",
            ".ruff.toml",
            ".mypy.ini",
            "docs/index.rst",
            "docs/conf.py",
            "tests/__init__.py",
            "tests/expected-count",
            "tests/data/mika/vectors.json",
            "twisted/plugins/mikanet_plugins.py",
        ):
            self.assertIn(name, names)
        self.assertEqual([name for name in names if name.endswith((".pyc", "dropin.cache", ".so"))], [])

    def test_installed_demo(self) -> None:
        """``mikanet demo --once`` from a plain ``pip install .`` of a checkout moves data."""
        venv = self.folder / "venv-plain"
        call(sys.executable, "-m", "venv", venv)
        call(venv / "bin" / "python", "-m", "pip", "install", "--quiet", self.copy_checkout("plain"))
        with tempfile.TemporaryDirectory() as empty:
            said = call(venv / "bin" / "mikanet", "demo", "--once", "--megabytes", "8", cwd=Path(empty))
        self.assertIn("Every byte was right", said)
        self.assertIn("curl --socks5-hostname", said)
