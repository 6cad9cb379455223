"""YAML read section by section, every mistake with its line. No I/O.

The nodes of the document are walked, not the values a loader would make of them: so each mistake has a place, a key that
nobody asked for is one, and text stays as it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import yaml

from mikanet.errors import ConfigError

T = TypeVar("T")

_NULL = "tag:yaml.org,2002:null"
_TRUE, _FALSE = frozenset({"true", "yes", "on"}), frozenset({"false", "no", "off"})


def read_yaml(text: str, name: str) -> Section:
    """The document ``text`` of the file ``name``.

    :raises ConfigError: if it is no YAML, or no mapping.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{name}{line}: no YAML: {problem.problem or problem.context}") from None
    except (yaml.YAMLError, RecursionError) as problem:
        raise ConfigError(f"{name}: no YAML: {' '.join(str(problem).split()) or 'too deep'}") from None
    if node is None:
        raise ConfigError(f"{name} is empty")
    return Section(node, name, "")


class Section:
    """A mapping whose keys are taken one by one; :meth:`done` finds those that nobody took.

    :ivar path: where in the document this is, such as ``transport.kcp``.
    """

    def __init__(self, node: yaml.Node | None, name: str, path: str) -> None:
        self.path = path
        self._name = name
        self._node = node
        self._left: dict[str, tuple[yaml.ScalarNode, yaml.Node]] = {}
        self._taken: dict[str, yaml.Node] = {}
        if node is None:
            return
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"{path or 'the file'} must be a list of keys with values")
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a key must be a word")
            if key.value in self._left:
                raise self._error(key, f"{self._path_of(key.value)} stands here twice")
            self._left[key.value] = key, value

    def __bool__(self) -> bool:
        """Whether the section is there at all."""
        return self._node is not None

    def done(self) -> None:
        """Every key that is known has been taken.

        :raises ConfigError: if there is another.
        """
        for key, _ in self._left.values():
            raise self._error(key, f"{self._path_of(key.value)} is not a key that is known here")

    # -- values

    def section(self, key: str) -> Section:
        """A section inside; one that is not there is empty."""
        return Section(self._take(key), self._name, self._path_of(key))

    def sections(self, key: str, most: int = 1024) -> Iterator[Section]:
        """The sections of a list."""
        for number, item in enumerate(self._items(key, most), 1):
            yield Section(item, self._name, f"{self._path_of(key)}[{number}]")

    def texts(self, key: str, most: int) -> list[str]:
        """The words of a list; a single word is a list too."""
        return [self._scalar(key, item) for item in self._items(key, most)]

    def text(self, key: str, default: str = "") -> str:
        """A text as it is written."""
        node = self._take(key)
        return default if node is None else self._scalar(key, node)

    def parsed(self, key: str, parse: Callable[[str], T], default: T) -> T:
        """A text that ``parse`` understands; what that says in a ConfigError or ValueError gets its place."""
        node = self._take(key)
        if node is None:
            return default
        text = self._scalar(key, node)
        if not text:
            return default
        try:
            return parse(text)
        except (ConfigError, ValueError) as problem:
            raise self._error(node, f"{self._path_of(key)}: {problem}") from None

    def number(self, key: str, least: int, most: int, default: int) -> int:
        """A whole number; zero and nothing mean the default, as in the original."""

        def parse(text: str) -> int:
            try:
                value = int(text)
            except ValueError:
                raise ValueError(f"{text!r} is not a whole number") from None
            if value and not least <= value <= most:
                raise ValueError(f"{value} is not between {least} and {most}")
            return value or default

        return self.parsed(key, parse, default)

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        """One of some words."""

        def parse(text: str) -> str:
            if text not in choices:
                raise ValueError(f"{text!r} is none of {', '.join(choices)}")
            return text

        return self.parsed(key, parse, default)

    def yes(self, key: str, default: bool | None = None) -> bool | None:
        """Whether something is on."""

        def parse(text: str) -> bool:
            if text.lower() in _TRUE | _FALSE:
                return text.lower() in _TRUE
            raise ValueError(f"{text!r} is neither on nor off")

        return self.parsed(key, parse, default)

    def error(self, key: str, text: str) -> ConfigError:
        """A mistake about a key, or about the section where that is not there."""
        return self._error(self._taken.get(key, self._node), f"{self._path_of(key)} {text}")

    # -- nodes

    def _take(self, key: str) -> yaml.Node | None:
        found = self._left.pop(key, None)
        if found is None:
            return None
        self._taken[key] = found[1]
        return None if found[1].tag == _NULL else found[1]

    def _items(self, key: str, most: int) -> list[yaml.Node]:
        node = self._take(key)
        if node is None:
            return []
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if len(items) > most:
            raise self._error(node, f"{self._path_of(key)} has more than {most} entries")
        return list(items)

    def _scalar(self, key: str, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, f"{self._path_of(key)} must be one value")
        return "" if node.tag == _NULL else str(node.value)

    def _path_of(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _error(self, node: yaml.Node | None, text: str) -> ConfigError:
        line = f", line {node.start_mark.line + 1}" if node is not None else ""
        return ConfigError(f"{self._name}{line}: {text}")
