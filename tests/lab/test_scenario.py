"""Tests of :mod:`tests.lab.scenario`."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.lab.scenario import WORDS, Carrier, Direction, Scenario, ScenarioError

_EXAMPLES = {
    "delay": ["15ms", "1s", "300us", "0.5"],
    "jitter": ["2ms"],
    "bandwidth": ["10Mbps", "1Gbps", "64kbps"],
    "queue": ["25"],
    "mtu": ["1400"],
    "loss": ["10%", "0.3"],
    "droplist": ["2,3,4", "1-9"],
    "corrupt": ["0.1%"],
    "forge": ["1%"],
    "duplicate": ["1%"],
    "reorder": ["5%"],
    "mirror": ["2%"],
    "inject": ["100/s"],
    "blackhole-on": ["5s"],
    "rebind-first": ["1s"],
    "rebind": ["address"],
    "record": ["a.jsonl"],
    "fragment": ["1-64", "7"],
    "flip": ["0", "17,4096"],
    "cut-after": ["100KB"],
    "cut-at": ["5s"],
    "cut": ["fin"],
}
_words = st.sampled_from([(name, value) for name, values in _EXAMPLES.items() for value in values])


class ScenarioTests(SynchronousTestCase):
    """One line of text says what a wire does."""

    def test_the_words_of_the_interop_runner(self) -> None:
        """Units become seconds, bits per second and chances; a direction's suffix holds for that direction only."""
        scenario = Scenario.parse(
            "delay=15ms bandwidth=10Mbps queue=25 loss@up=30% loss-burst@up=3 droplist@down=2,3,4"
        )
        self.assertAlmostEqual(scenario.up.delay, 0.015)
        self.assertEqual(scenario.down.bandwidth, 10e6)
        self.assertEqual((scenario.up.loss, scenario.up.loss_burst), (0.3, 3))
        self.assertEqual(scenario.down.loss, 0)
        self.assertEqual(scenario.towards(Direction.DOWN).droplist, frozenset({2, 3, 4}))
        self.assertEqual(scenario.up.droplist, frozenset())

    def test_what_cannot_be_read_is_refused_by_name(self) -> None:
        """An unknown word, a bad value, a bad direction and a word without its companion each give one clear line."""
        for text, named in (
            ("dealy=1s", "dealy"),
            ("delay", "delay"),
            ("delay=fast", "delay"),
            ("delay=-1s", "delay"),
            ("delay=nan", "delay"),
            ("loss=101%", "loss"),
            ("loss@left=1%", "@up"),
            ("queue=10", "bandwidth"),
            ("blackhole-off=1s", "blackhole-on"),
            ("rebind-first@down=1s", "rebind"),
            ("rebind=host", "port or address"),
            ("droplist=9-2", "droplist"),
            ("fragment=0", "fragment"),
            ("loss=1% loss-run=0.5", "loss-run"),
        ):
            message = str(self.assertRaises(ScenarioError, Scenario.parse, text))
            self.assertIn(named, message, text)
            self.assertNotIn("\n", message)

    def test_streams_lose_nothing(self) -> None:
        """A word that has no meaning on a carrier is refused, not ignored."""
        self.assertRaises(ScenarioError, Scenario.parse("loss=1%").require, Carrier.STREAMS)
        self.assertRaises(ScenarioError, Scenario.parse("cut-at=1s").require, Carrier.PACKETS)
        Scenario.parse("delay=1s blackhole-on=1s blackhole-off=1s").require(Carrier.STREAMS | Carrier.PACKETS)

    def test_each_word_stands_for_something(self) -> None:
        """The form shown for each word can be read, so that the help never lies."""
        companions = {"queue": "bandwidth=1", "blackhole-off": "blackhole-on=1", "loss-burst": "loss=1%"}
        companions["loss-run"] = "loss=1%"
        for name, word in WORDS.items():
            for form in word.form.split(" or "):
                Scenario.parse(f"{companions.get(name, '')} {name}={form}")

    @settings(deadline=None)
    @given(st.lists(st.tuples(_words, st.sampled_from(["", "@up", "@down"])), max_size=12))
    def test_a_scenario_is_its_text(self, words: list[tuple[tuple[str, str], str]]) -> None:
        """The text of a scenario parses to the same scenario."""
        text = " ".join(f"{name}{suffix}={value}" for (name, value), suffix in words)
        try:
            scenario = Scenario.parse(text)
        except ScenarioError:
            return
        self.assertEqual(Scenario.parse(str(scenario)), scenario)
