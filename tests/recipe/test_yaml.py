"""Recipes are YAML 1.2 by its core schema, and every fault of the text has its place."""

from __future__ import annotations

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.recipe import load_recipe
from limbeck.recipe.document import read_document


@pytest.fixture
def read(tmp_path):
    def call(content):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_document(path)

    return call


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),
        ("3.0e-4", 3e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-1", -1),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1.", 1.0),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("nan", "nan"),
        ("1.2.3", "1.2.3"),
        ("'3'", "3"),
        ('"true"', "true"),
        ("!!str 3", "3"),
        ("é", "é"),
    ],
)
def test_scalars_are_those_of_the_core_schema(read, written, value):
    found = read(f"a: {written}\n").value["a"]
    assert found == value
    assert type(found) is type(value)


def test_block_text_keeps_its_lines(read):
    assert read("a: |\n  one\n  two\n").value == {"a": "one\ntwo\n"}


def test_places_count_from_one(read):
    document = read("a:\n  - b: 3\n    c: [4, 5]\n")
    problem = document.problem(("a", 0, "c", 1), "is wrong")
    assert (problem.line, problem.column, problem.field) == (3, 12, "a[0].c[1]")
    key = document.problem(("a", 0, "c"), "is wrong", key=True)
    assert (key.line, key.column) == (3, 5)


def test_what_is_not_there_has_the_place_of_what_it_is_missing_from(read):
    problem = read("a:\n  b: {c: 1}\n").problem(("a", "b", "d", "e"), "is missing")
    assert (problem.line, problem.column, problem.field) == (2, 3, "a.b.d.e")


def test_anchors_and_merges_work(read):
    document = read(
        "base: &base {a: 1, b: 2}\none: *base\ntwo: {<<: *base, b: 3}\nthree: {b: 4, <<: [{c: 5}, *base]}\n"
    )
    assert document.value["one"] == {"a": 1, "b": 2}
    assert document.value["two"] == {"a": 1, "b": 3}
    assert document.value["three"] == {"a": 1, "b": 4, "c": 5}
    assert document.problem(("two", "a"), "x").line == 1


def faults(read, content):
    """Problems of a text, whether it can be read or not."""
    try:
        return read(content).problems
    except LimbeckError as error:
        return error.problems if error.reason is Reason.RECIPE_INVALID else ()


FAULTS = {
    "a duplicate key": ("a: 1\nb: 2\na: 3\n", "'a' is given twice, first on line 1", (3, 1)),
    "a duplicate key inside": ("x:\n  - {a: 1, a: 2}\n", "'a' is given twice", (2, 12)),
    "a tab": ("a:\n\tb: 1\n", "cannot start any token", (2, 1)),
    "two colons": ("a: b: c\n", "mapping values are not allowed", (1, 5)),
    "an open bracket": ("a: [1, 2\n", "expected ',' or ']'", (2, 1)),
    "an open quote": ("a: 'x\n", "unexpected end of stream", (2, 1)),
    "a second document": ("a: 1\n---\nb: 2\n", "a second one begins here", (2, 1)),
    "nothing": ("", "the file is empty", None),
    "only comments": ("# x\n", "the file is empty", None),
    "a list": ("- a\n", "not a mapping of fields", (1, 1)),
    "a text": ("hello\n", "not a mapping of fields", (1, 1)),
    "a tag": ("a: !!python/object:os.system {}\n", "tags such as", (1, 4)),
    "infinity": ("a: .inf\n", ".inf is not a finite number", (1, 4)),
    "not a number": ("a: .NaN\n", ".NaN is not a finite number", (1, 4)),
    "too big": ("a: 1e999\n", "1e999 is not a finite number", (1, 4)),
    "more digits than a number has": (f"a: {'9' * 10_000}\n", "(10,000 digits) is not a finite number", (1, 4)),
    "as many in hex": (f"a: 0x{'f' * 5_000}\n", "(5,002 digits) is not a finite number", (1, 4)),
    "an unknown anchor": ("a: *b\n", "no anchor &b before", (1, 4)),
    "a key that is a list": ("? [1]\n: 2\n", "name must be text", (1, 3)),
    "an alias inside of itself": ("a: &x [1, *x]\n", "inside of its own anchor", (1, 4)),
    "a merge of a number": ("a: {<<: 3}\n", "<< must name a mapping", (1, 9)),
    "a control character": ("a: 1\nb: \x07\n", "a control character", (2, 4)),
    "Latin-1": (b"a: 1\nname: caf\xe9\n", "byte 0xe9 is not UTF-8", (2, 10)),
    "UTF-16": ("a: 1\n".encode("utf-16"), "is not UTF-8", (1, 1)),
}


@pytest.mark.parametrize(("content", "said", "place"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_text_is_told_with_its_place(read, content, said, place):
    (problem,) = faults(read, content)
    assert said in problem.message
    assert (problem.line, problem.column) == (place or (None, None))
    assert problem.file


def test_a_byte_order_mark_and_windows_lines_are_fine(read):
    document = read("\ufeffa: 1\r\nb: 2\r\n".encode())
    assert document.value == {"a": 1, "b": 2}
    assert document.problem(("a",), "x").column == 4


def test_a_small_text_of_aliases_cannot_become_enormous(read):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(LimbeckError, match="not valid YAML") as caught:
        read("\n".join(lines))
    assert "more than 100,000 values" in str(caught.value)


def test_deep_nesting_is_refused_without_a_traceback(read):
    with pytest.raises(LimbeckError) as caught:
        read("a: " + "[" * 500 + "]" * 500)
    assert "nested too deeply" in str(caught.value)


def test_a_missing_file_and_a_folder_are_told(tmp_path, registry):
    with pytest.raises(LimbeckError, match="cannot be read") as caught:
        load_recipe(tmp_path / "none.yaml", registry)
    assert "there is no such file" in str(caught.value)
    with pytest.raises(LimbeckError) as caught:
        load_recipe(tmp_path, registry)
    assert "a folder, not a file" in str(caught.value)


def test_faults_of_the_text_and_of_fields_are_told_together(problems, text):
    found = problems(text(output="1e999", studnet="{}"))
    assert [(problem.field, problem.line) for problem in found] == [("output", 5), ("output", 5), ("studnet", 6)]
