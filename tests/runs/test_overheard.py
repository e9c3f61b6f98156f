"""What libraries say becomes events: each text once, in bounds, and where it went it still goes."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from limbeck.runs import overheard
from limbeck.runs.overheard import MOST, MOST_CHARACTERS, MOST_OF_A_PLACE, overhearing


class Heard:
    def __init__(self) -> None:
        self.said: list[tuple[str, str, str]] = []

    def __call__(self, message: Any) -> None:
        self.said.append((message.level, message.logger, message.message))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def library() -> Iterator[logging.Logger]:
    """A logger as transformers has it: it hands nothing on."""
    logger = logging.getLogger("library")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)
    logger.propagate = True


def test_records_and_warnings_are_heard_and_still_shown(
    heard: Heard, library: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    library.handlers[0].setStream(sys.stderr)  # type: ignore[attr-defined]
    with warnings.catch_warnings(record=True) as warned, overhearing(heard):
        warnings.simplefilter("always")
        library.info("nothing")
        library.warning("a %s\nof two lines", "text")
        library.error("worse")
        library.log(logging.CRITICAL + 5, "worst")
        library.log(logging.WARNING + 5, "between")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert heard.said == [
        ("WARNING", "library", "a text\nof two lines"),
        ("ERROR", "library", "worse"),
        ("CRITICAL", "library", "worst"),
        ("WARNING", "library", "between"),
        ("WARNING", "py.warnings", "DeprecationWarning: old"),
    ]
    assert "of two lines" in capsys.readouterr().err
    assert [str(one.message) for one in warned] == ["old"]


def test_what_a_logger_is_told_to_keep_to_itself_is_not_heard(heard: Heard, library: logging.Logger) -> None:
    library.setLevel(logging.ERROR)
    try:
        with overhearing(heard):
            library.warning("advice")
            library.error("a fault")
    finally:
        library.setLevel(logging.NOTSET)
    assert [text for _, _, text in heard.said] == ["a fault"]


def test_a_chatty_library_cannot_flood_the_history(heard: Heard, library: logging.Logger) -> None:
    with overhearing(heard):
        for number in range(300):
            library.warning("the same")
            library.warning("step %d", number)
    assert len(heard.said) == 1 + MOST_OF_A_PLACE


def test_nor_can_many(heard: Heard, library: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overheard, "MOST_WAITING", 10**6)
    with overhearing(heard):
        for number in range(2 * MOST):
            record = library.makeRecord("library", logging.WARNING, f"file{number}.py", 1, f"text {number}", (), None)
            assert record.lineno == 1
    assert len(heard.said) == MOST + 1
    assert heard.said[-1][2] == f"{MOST} messages of this attempt were noted; more are not"


def test_who_warns_in_the_middle_of_an_event_is_heard_after_it(library: logging.Logger) -> None:
    lock, said = threading.Lock(), list[str]()  # not one that the same thread may take twice

    def emit(message: Any) -> None:
        with lock:
            said.append(message.message)

    with overhearing(emit):
        with lock:
            library.warning("from a destructor, say")
            assert said == []
        library.warning("later")
    assert said == ["from a destructor, say", "later"]


def test_what_cannot_be_emitted_stops_nobody(library: logging.Logger) -> None:
    def full(message: Any) -> None:
        raise OSError(28, "No space left on device")

    with overhearing(full):
        library.warning("one")
        library.warning("two")


@pytest.mark.parametrize("text", ["x" * 10_000, "half a pair \ud800"], ids=["long", "half"])
def test_texts_are_cut_and_can_be_encoded(text: str, heard: Heard, library: logging.Logger) -> None:
    with overhearing(heard):
        library.makeRecord("library", logging.ERROR, "texts.py", 1, text, (), None)  # nobody else need encode it
    ((_, _, told),) = heard.said
    assert len(told) <= MOST_CHARACTERS
    told.encode()


def test_arguments_that_do_not_fit_are_left_out(heard: Heard, library: logging.Logger) -> None:
    with overhearing(heard):
        library.makeRecord("library", logging.ERROR, "apples.py", 1, "%d apples", ("no",), None)
    assert heard.said == [("ERROR", "library", "%d apples")]


def test_nothing_is_left_behind(heard: Heard, library: logging.Logger) -> None:
    make, show = logging.getLogRecordFactory(), warnings.showwarning
    with overhearing(heard):
        theirs = logging.getLogRecordFactory()
        logging.setLogRecordFactory(lambda *args, **options: theirs(*args, **options))  # a library puts its own before
    library.error("after")
    assert heard.said == []
    logging.setLogRecordFactory(make)
    assert warnings.showwarning is show
