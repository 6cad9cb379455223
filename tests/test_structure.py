"""The tests' own house rules: every module is tested, every test is run, and every test says what it states."""

from __future__ import annotations

import ast
import unittest
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"

#: Modules without a test module of their own name that their folder's tests do not import either: where their tests are.
TESTED_ELSEWHERE = {
    "mikanet/__main__.py": "tests/interop/test_doctor_programs.py: the doctor starts programs by it",
    "mikanet/address.py": "tests/service/test_options.py: it is what command lines are made of",
    "mikanet/cli/demo.py": "tests/test_packaging.py: it runs real services",
    "mikanet/cli/genkey.py": "tests/cli/test_main.py",
    "mikanet/cli/kcptun_client.py": "tests/interop/test_kcptun.py: it is kcptun's peer",
    "mikanet/cli/kcptun_common.py": "tests/interop/test_kcptun.py: it is kcptun's peer",
    "mikanet/cli/kcptun_server.py": "tests/interop/test_kcptun.py: it is kcptun's peer",
    "mikanet/cli/status.py": "tests/service/test_counters_socket.py",
    "mikanet/counters.py": "tests/service/test_reporting.py: and every test of a service reads it",
    "mikanet/crypto/block_tea.py": "tests/crypto/test_packets.py: with the modes that use it",
    "mikanet/crypto/block_twofish.py": "tests/crypto/test_packets.py: with the modes that use it",
    "mikanet/dial.py": "tests/test_egress.py and tests/endpoints/test_strings.py",
    "mikanet/endpoints/arguments.py": "tests/endpoints/test_strings.py: through strings",
    "mikanet/endpoints/connect.py": "tests/test_endpoint_strings.py and tests/interop/test_nitrosocks.py: through strings",
    "mikanet/endpoints/host.py": "tests/endpoints/test_strings.py: through strings",
    "mikanet/endpoints/mika.py": "tests/endpoints/test_strings.py: through strings",
    "mikanet/endpoints/obfs_http.py": "tests/endpoints/test_strings.py: through strings",
    "mikanet/endpoints/socks5.py": "tests/endpoints/test_strings.py: through strings",
    "mikanet/endpoints/nitrosocks.py": "tests/interop/test_nitrosocks.py: it connects",
    "mikanet/errors.py": "tests/test_egress.py and the front doors: reasons",
    "mikanet/fec/autotune.py": "tests/fec/test_codec.py: the decoder's part",
    "mikanet/filters/dropping.py": "tests/mika/test_client.py and tests/nitrosocks: a base class",
    "mikanet/filters/packets.py": "tests/fec/test_filter.py and tests/kcp/test_filter.py: a base class",
    "mikanet/interfaces.py": "no behaviour",
    "mikanet/kcp/client.py": "tests/endpoints/test_kcp.py and tests/interop/test_kcptun.py: behind the endpoint",
    "mikanet/kcp/congestion.py": "tests/kcp/test_arq.py: a part of the state machine",
    "mikanet/kcp/endpoints.py": "tests/endpoints/test_kcp.py and tests/interop/test_kcptun.py",
    "mikanet/kcp/ports.py": "tests/endpoints/test_kcp.py and tests/interop/test_kcptun.py: behind the endpoint",
    "mikanet/kcp/rtt.py": "tests/kcp/test_arq.py: a part of the state machine",
    "mikanet/kcp/sendqueue.py": "tests/kcp/test_arq.py: a part of the state machine",
    "mikanet/kcp/udp.py": "tests/endpoints/test_kcp.py and tests/interop/test_kcptun.py: behind the endpoint",
    "mikanet/mika/options.py": "tests/service/test_options.py",
    "mikanet/mika/service.py": "tests/interop/test_mika.py",
    "mikanet/mika/tap_client.py": "tests/service/test_options.py",
    "mikanet/mika/tap_server.py": "tests/service/test_options.py",
    "mikanet/rawpackets/device.py": "tests/interop/test_rawpackets.py: real interfaces",
    "mikanet/rawpackets/hold.py": "tests/interop/test_rawpackets_rules.py: a real kernel",
    "mikanet/rawpackets/pcap.py": "tests/interop/test_rawpackets.py: real interfaces",
    "mikanet/rawpackets/routes.py": "tests/interop/test_rawpackets_rules.py: a real kernel",
    "mikanet/rawpackets/selftest.py": "tests/interop/test_rawpackets_rules.py: a real kernel",
    "mikanet/nitrosocks/link_protocol.py": "tests/nitrosocks/test_protocol.py and tests/nitrosocks/test_client.py: their base",
    "mikanet/nitrosocks/options.py": "tests/interop/test_nitrosocks.py: what the command lines read",
    "mikanet/nitrosocks/service.py": "tests/interop/test_nitrosocks.py: it puts programs together",
    "mikanet/nitrosocks/tap_client.py": "tests/interop/test_nitrosocks.py",
    "mikanet/nitrosocks/tap_server.py": "tests/interop/test_nitrosocks.py",
    "mikanet/nitrosocks/tls_options.py": "tests/interop/test_nitrosocks.py: real TLS",
    "mikanet/nitrosocks/server_streams.py": "tests/nitrosocks/test_protocol.py: through the server",
    "mikanet/endpoints/paqet.py": "tests/interop/test_paqet_programs.py: a program that uses one",
    "mikanet/cli/ping.py": "tests/paqet/test_programs.py and tests/interop/test_paqet_programs.py",
    "mikanet/cli/passwd.py": "tests/pickaxe/test_taps.py: beside the file that its lines are for",
    "mikanet/endpoints/pickaxe.py": "tests/pickaxe/test_taps.py: beside the options that it shares",
    "mikanet/pickaxe/client_link.py": "tests/pickaxe/test_client.py: a client's session at work",
    "mikanet/pickaxe/link.py": "tests/pickaxe/test_client.py: both ends' sessions at work",
    "mikanet/pickaxe/options.py": "tests/pickaxe/test_taps.py",
    "mikanet/pickaxe/slots.py": "tests/pickaxe/test_client.py: what a client does with its carriers",
    "mikanet/service/doors.py": "tests/interop/test_mika.py: it puts a client together",
    "mikanet/smux/forward.py": "tests/interop/test_kcptun.py: what kcptun's peer does with streams",
}


def test_files() -> list[Path]:
    """Every file that trial loads."""
    return sorted(TESTS.rglob("test_*.py"))


def import_test(file: Path) -> ModuleType:
    """A test module."""
    return import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))


def test_cases(module: ModuleType) -> Iterator[type[unittest.TestCase]]:
    """The test classes that a module defines. ``...TestCase`` is the name of a base class, which has no tests itself."""
    for value in vars(module).values():
        is_case = isinstance(value, type) and issubclass(value, unittest.TestCase)
        if is_case and value.__module__ == module.__name__ and not value.__name__.endswith("TestCase"):
            yield value


def imported(file: Path) -> set[str]:
    """The names of modules that a file may import."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


class CoverageTests(SynchronousTestCase):
    """Every module has its tests."""

    def test_every_module_is_tested(self) -> None:
        """``mikanet/a/b.py`` has ``tests/a/test_b.py``, or tests in ``tests/a`` that import it, or a reason."""
        missing = []
        for file in sorted((ROOT / "mikanet").rglob("*.py")):
            inside = file.relative_to(ROOT / "mikanet")
            path = f"mikanet/{inside.as_posix()}"
            if file.name == "__init__.py" or path in TESTED_ELSEWHERE:
                continue
            folder = TESTS / inside.parent
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            if not (folder / f"test_{file.name}").exists() and not any(
                name in imported(test) for test in folder.glob("test_*.py")
            ):
                missing.append(path)
        self.assertEqual("\n".join(missing), "")

    def test_the_reasons_are_about_something(self) -> None:
        """Each exception names a module that exists, and each test module named in it exists."""
        for path, reason in TESTED_ELSEWHERE.items():
            self.assertTrue((ROOT / path).exists(), path)
            for word in reason.replace(":", " ").split():
                if word.startswith("tests/"):
                    self.assertTrue((ROOT / word).exists(), word)


class RunTests(SynchronousTestCase):
    """Every test is one that runs."""

    def test_no_class_without_tests(self) -> None:
        """A test class has tests: a misspelt method name would be silent."""
        loader = unittest.TestLoader()
        empty = [
            f"{file.name}: {case.__name__}"
            for file in test_files()
            for case in test_cases(import_test(file))
            if not loader.getTestCaseNames(case)
        ]
        self.assertEqual(empty, [])

    def test_no_module_without_tests(self) -> None:
        """A file that is called a test module holds tests."""
        empty = [str(file) for file in test_files() if not any(test_cases(import_test(file)))]
        self.assertEqual(empty, [])

    def test_folders_are_packages(self) -> None:
        """Trial finds tests in packages only."""
        missing = [str(file.parent) for file in test_files() if not (file.parent / "__init__.py").exists()]
        self.assertEqual(missing, [])

    def test_test_cases_stand_where_trial_looks(self) -> None:
        """No test class of ours is in a file that trial does not load."""
        lost = [
            f"{file.relative_to(ROOT)}: {node.name}"
            for file in TESTS.rglob("*.py")
            if not file.name.startswith("test_")
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.ClassDef)
            and not node.name.endswith("TestCase")
            and any(ast.unparse(base).endswith("TestCase") for base in node.bases)
        ]
        self.assertEqual(lost, [])

    def test_every_test_says_what_it_states(self) -> None:
        """Every test has a docstring."""
        loader = unittest.TestLoader()
        silent = [
            f"{file.name}: {case.__name__}.{name}"
            for file in test_files()
            for case in test_cases(import_test(file))
            for name in loader.getTestCaseNames(case)
            if not (getattr(case, name).__doc__ or "").strip()
        ]
        self.assertEqual(silent, [])
