"""A new user types what README and the how-tos say, and gets it wrong: docs/howto, README.rst, and the messages of all programs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from tests.interop.new_user import Machines, Mistake, blocks, judge, steps
from tests.lab.tunnels import CLOCK_FILE, SHIFTED_CLOCK, set_clock
from tests.support.peers import require_program
from tests.support.processes import ROOT

HOWTO = ROOT / "docs" / "howto"
SOCKS = "--socks tcp:1080:interface=127.0.0.1"


class NewUserTestCase(SynchronousTestCase):
    """Two machines and a fresh environment."""

    timeout = 400
    machines: Machines

    def setUp(self) -> None:
        """Make them; the environment is made once for all."""
        self.machines = Machines()
        self.machines.__enter__()
        self.addCleanup(self.machines.__exit__)


class PageTests(NewUserTestCase):
    """Lines as they stand on the pages."""

    def test_readme(self) -> None:
        """README: the demonstration, and every system's lines; each tunnel then carries a page."""
        self.assertIn("SOCKS v5 host 127.0.0.1", self.machines.demo)
        self.assertGreaterEqual(self.machines.follow(ROOT / "README.rst"), 22)

    def test_howtos(self) -> None:
        """The how-to of each system, of Mika over KCP, and of kcptun."""
        require_program("php")
        for name, least in (
            ("mika", 5), ("mika-kcp", 5), ("pickaxe", 5), ("nitrosocks", 5), ("paqet-server", 6), ("megaki-php", 5), ("kcptun", 7),
        ):  # fmt: skip
            self.assertGreaterEqual(self.machines.follow(HOWTO / f"{name}.rst"), least, name)


class UnitTests(SynchronousTestCase):
    """Units for systemd."""

    def test_verify(self) -> None:
        """systemd finds nothing wrong with them."""
        verify = require_program("systemd-analyze")
        folder = Path(self.mktemp())
        folder.mkdir()
        for unit in (HOWTO / "units").glob("*.service"):
            text = unit.read_text("utf-8").replace("/usr/local/lib/mikanet/bin/mikanet", "/bin/true")
            (folder / unit.name).write_text(text)
        files = [str(file) for file in folder.iterdir()]
        done = subprocess.run([verify, "verify", *files], capture_output=True, text=True, timeout=60)
        self.assertEqual((done.returncode, done.stderr), (0, ""))


class MistakeTests(NewUserTestCase):
    """What a user gets wrong: one message, with the cause and what to do, within ten seconds."""

    #: What is in the way of a port that a mistake wants.
    BUSY: ClassVar[str] = "python3 -m http.server --bind 127.0.0.1 1099"

    def prepare(self, page: str, typed: str) -> None:
        """Both ends of a page, with the client stopped; then more lines at home."""
        machines = self.machines
        for block in blocks((HOWTO / page).read_text("utf-8")):
            for text, stays in steps(block.text):
                if stays and block.at_server:
                    machines.serve(text, True)
                elif not stays and "curl" not in text and "mikanet ping" not in text:
                    machines.type(text, block.at_server)
        machines.type(typed, False)

    def check(self, mistakes: list[Mistake]) -> None:
        """Make them."""
        busy = self.machines.start(self.BUSY, False)
        clock = self.machines.client_folder / "clock"
        set_clock(clock, next((each.clock for each in mistakes if each.clock), 0.0))
        wrong = f"{SHIFTED_CLOCK}\nfrom mikanet.cli.main import main\nmain()"
        complaints = judge(self.machines, mistakes, {CLOCK_FILE: str(clock)}, wrong)
        busy.stop()
        if complaints:
            self.fail("\n".join(complaints))

    def test_mika(self) -> None:
        """Mika."""
        self.prepare("mika.rst", "(umask 077; mikanet genkey > other); cp password readable; chmod 644 readable")
        good = "mikanet mika-client --server tcp:SERVER:8388 --password-file password"

        def socks(port: int) -> str:
            return f" --socks tcp:{port}:interface=127.0.0.1"

        said = "accepts connections and answers nothing"
        self.check([
            Mistake("wrong password", good.replace("file password", "file other") + socks(2001), said, "password", door=2001),
            Mistake("wrong clock", good + socks(2002), said, "clock", door=2002, clock=3600),
            Mistake("wrong profile", good + " --profile go" + socks(2003), "answers nothing", "--profile", door=2003),
            Mistake("wrong port", good.replace("8388", "8399") + socks(2004), "8399 refuses", "is it running, and is the port right", door=2004),
            Mistake("unknown host", good.replace("SERVER", "no-such.invalid") + socks(2005), "cannot be reached", "name", door=2005),
            Mistake("missing file", good.replace("file password", "file nowhere") + socks(2006), "nowhere", "No such file"),
            Mistake("readable secret", good.replace("file password", "file readable") + socks(2007), "read by others", "chmod 600 readable"),
            Mistake("port in use", good + socks(1099), "1099.*in use", "choose another port"),
            Mistake("unknown option", good + " --pasword x" + socks(2008), "pasword", "did you mean --password-file"),
            Mistake("no door", good, "no front door", "--socks"),
        ])  # fmt: skip

    def test_pickaxe(self) -> None:
        """Pickaxe."""
        self.prepare(
            "pickaxe.rst", "(umask 077; mikanet genkey > other); cp alice.password readable; chmod 644 readable"
        )
        good = "mikanet pickaxe-client --user alice --password-file alice.password --carrier tcp://SERVER:8865"

        def socks(port: int) -> str:
            return f" --socks tcp:{port}:interface=127.0.0.1"

        self.check([
            Mistake("wrong password", good.replace("alice.password", "other") + socks(2001), "answers the login", "password", door=2001),
            Mistake("wrong user", good.replace("--user alice", "--user bob") + socks(2002), "answers the login", "user", door=2002),
            Mistake("server not running", good.replace("8865", "8866") + socks(2003), "8866 refuses connections", "is it running, and is the port right", door=2003),
            Mistake("unknown carrier", good.replace("tcp://", "tpc://") + socks(2004), "tpc", "tcp"),
            Mistake("unknown policy", good + " --policy fastest" + socks(2005), "fastest", "ordered"),
            Mistake("readable secret", good.replace("alice.password", "readable") + socks(2006), "read by others", "chmod 600 readable"),
            Mistake("port in use", good + socks(1099), "1099.*in use", "choose another port"),
            Mistake("no users file", "mikanet pickaxe-server --users nowhere --carrier tcp://0.0.0.0:8870", "nowhere", "No such file", at_server=True),
        ])  # fmt: skip

    def test_nitrosocks(self) -> None:
        """NitroSocks."""
        self.prepare("nitrosocks.rst", "mikanet keygen nitrosocks other --name SERVER")
        good = (
            "mikanet nitrosocks-client --server tcp:SERVER:443 --server-name SERVER --tls-verify server.crt "
            "--private-key client.key --token-file token"
        )
        server = "mikanet nitrosocks-server --listen tcp:444 --certificate keys/server.pem --public-key keys/server.pub --tokens keys/tokens"

        def socks(port: int) -> str:
            return f" --socks tcp:{port}:interface=127.0.0.1"

        self.check([
            Mistake("wrong private key", good.replace("client.key", "other/client.key") + socks(2001), "no session with the server", "key", door=2001),
            Mistake("wrong token", good.replace("file token", "file other/token") + socks(2002), "no session with the server", "token", door=2002),
            Mistake("wrong clock", good + socks(2003), "no session with the server", "clock", door=2003, clock=3600),
            Mistake("wrong name", good.replace("name SERVER", "name example.org") + socks(2004), "not for the server's name", "--server-name", door=2004),
            Mistake("untrusted certificate", good.replace(" --tls-verify server.crt", "") + socks(2005), "has signed itself", "--tls-verify FILE", door=2005),
            Mistake("another certificate", good.replace("server.crt", "other/server.crt") + socks(2006), "has signed itself", "--tls-verify FILE", door=2006),
            Mistake("a PEM for a token", good.replace("file token", "file client.key") + socks(2007), "PEM file, not a token", "file token"),
            Mistake("wrong port", good.replace(":443", ":445") + socks(2008), "no session with the server", "refuse", door=2008),
            Mistake("TLS in TLS", server.replace("tcp:444", "ssl:444"), "TLS into TLS", "give tcp:443", at_server=True),
            Mistake("no key in the certificate", server.replace("server.pem", "server.crt"), "read by others|no private key", "chmod|one file", at_server=True),
        ])  # fmt: skip

    def test_paqet(self) -> None:
        """paqet."""
        typed = """
            (umask 077; sed "s/key: .*/key: $(mikanet genkey)/" client.yaml > other.yaml)
            (umask 077; sed s/9999/9998/ client.yaml > elsewhere.yaml; sed s/aes-128-gcm/rot13/ client.yaml > block.yaml)
            (umask 077; echo 'role: [client' > broken.yaml); cp client.yaml readable.yaml; chmod 644 readable.yaml
            sed -i s/1080/2001/ other.yaml; sed -i s/1080/2002/ elsewhere.yaml; chmod 755 .; (umask 077; sed s/1080/1099/ client.yaml > busy.yaml)
        """
        self.prepare("paqet-server.rst", typed)
        good = "mikanet paqet-client --config client.yaml"
        self.check([
            Mistake("wrong key", good.replace("client.yaml", "other.yaml"), "answers nothing", "key", door=2001),
            Mistake("server not running", good.replace("client.yaml", "elsewhere.yaml"), "answers nothing|cannot be reached", "run", door=2002),
            Mistake("not root", "setpriv --bounding-set=-all --inh-caps=-all " + good + f" {SOCKS.replace('1080', '2003')}", "root|CAP_NET_RAW", "root|CAP_NET_RAW"),
            Mistake("missing file", good.replace("client.yaml", "nowhere.yaml"), "nowhere.yaml", "No such file"),
            Mistake("broken YAML", good.replace("client.yaml", "broken.yaml"), "broken.yaml", "line"),
            Mistake("unknown block", good.replace("client.yaml", "block.yaml"), "rot13", "aes"),
            Mistake("readable secret", good.replace("client.yaml", "readable.yaml"), "read by others", "chmod 600"),
            Mistake("the client's file at a server", "mikanet paqet-server --config client.yaml", "role", "paqet-client|server"),
            Mistake("port in use", good.replace("client.yaml", "busy.yaml"), "1099.*in use", "choose another port"),
        ])  # fmt: skip

    def test_megaki(self) -> None:
        """Megaki."""
        require_program("php")
        typed = "mikanet keygen megaki other"
        for name in ("worker.php",):
            (self.machines.server_folder / name).write_text((HOWTO / "megaki-worker.php").read_text("utf-8"))
        (self.machines.server_folder / "broken.php").write_text("<?php function on_handle( {\n")
        (self.machines.server_folder / "broken.py").write_text("def on_handle(request) return request\n")
        self.prepare("megaki-php.rst", typed)
        good = "mikanet megaki-client --server tcp:SERVER:6363 --server-key server.cert --listen-http tcp:{}:interface=127.0.0.1"
        server = "mikanet megaki-server --listen tcp:{} --key keys/server-private.pem --worker "
        self.check([
            Mistake("broken PHP", server.format(6371) + "php:broken.php", "broken.php", "[Pp]arse error.*correct it", at_server=True),
            Mistake("broken Python", server.format(6372) + "python:broken.py", "broken.py", "line 1: .*correct it", at_server=True),
            Mistake("no worker file", server.format(6373) + "php:nowhere.php", "nowhere.php", "No such file|not", at_server=True),
            Mistake("unknown worker", server.format(6374) + "ruby:worker.rb", "ruby", "php:", at_server=True),
            Mistake("port in use", server.format(6363) + "php:worker.php", "in use", "another", at_server=True),
            Mistake("wrong server key", good.format(2001).replace("server.cert", "other/server.cert"), "no session with", "key here is not its key", door=2001, http=True),
            Mistake("wrong port", good.format(2002).replace("6363", "6364"), "6364.*refuse|refuse.*6364", "6364", door=2002, http=True),
            Mistake("no key file", good.format(2003).replace("server.cert", "nowhere.cert"), "nowhere.cert", "No such file"),
        ])  # fmt: skip
