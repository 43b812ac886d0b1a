import pytest
from fleet.document_checks import MAX_FAULTS, faults_error, load_json, load_yaml, path_of
from fleet.errors import FleetError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "x.yml: line 2: the key 'a' is given twice"),
        ("a: {b: 1,\n  b: 2}\n", "x.yml: line 2: the key 'b' is given twice"),
        ("a: [1, 2\n", "x.yml: line 2: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n\tb: 2\n", "x.yml: line 2: not YAML: found character '\\t' that cannot start any token"),
        ("3: x\n", "x.yml: line 1: a key must be a string, got '3'"),
        ("a: &a\n  b: *a\n", "x.yml: line 1: an alias (*) stands inside its own anchor (&)"),
        ("a: *nothing\n", "x.yml: line 1: not YAML: found undefined alias 'nothing'"),
        ("a: 1\n---\nb: 2\n", "x.yml: line 2: not YAML: but found another document"),
        ("a: !!python/object:os.system x\n", "x.yml: line 1: not YAML: could not determine a constructor for the tag"),
        ("a: \x00\n", "x.yml: not YAML: unacceptable character #x0000"),
        ("[" * 3000, "x.yml: nested too deeply"),
    ],
)
def test_faults_of_yaml_are_one_line_with_the_place(text, message):
    with pytest.raises(FleetError) as caught:
        load_yaml(text, where="x.yml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_dates_stay_strings_and_anchors_are_shared():
    assert load_yaml("a: 2026-01-02\nb: &b {c: 1}\nd: *b\ne: {<<: *b, f: 2}\n", where="x") == {
        "a": "2026-01-02",
        "b": {"c": 1},
        "d": {"c": 1},
        "e": {"c": 1, "f": 2},
    }


def test_many_aliases_of_aliases_are_checked_once_each():
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert len(load_yaml("\n".join(lines), where="x")) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "x.json: the key 'a' is given twice"),
        ('{"a": NaN}', "x.json: NaN is not a number that JSON knows"),
        ('{"a": -Infinity}', "x.json: -Infinity is not a number that JSON knows"),
        ('{\n"a": ]', "x.json: line 2: not JSON: Expecting value"),
        ("", "x.json: line 1: not JSON: Expecting value"),
        ("[" * 200_000, "x.json: nested too deeply"),
    ],
)
def test_faults_of_json_are_one_line_with_the_place(text, message):
    with pytest.raises(FleetError, match=r".") as caught:
        load_json(text, where="x.json")
    assert str(caught.value) == message


def test_no_more_than_five_faults_are_told():
    message = str(faults_error([(f"x: {n}", "bad") for n in range(9)]))
    assert message.splitlines() == [*(f"x: {n}: bad" for n in range(4)), "x: 4: bad (and 4 more faults)"]
    assert len(message.splitlines()) == MAX_FAULTS


def test_paths_read_as_they_are_written():
    assert path_of("models", 2, "demand", "requests_per_second") == "models[2].demand.requests_per_second"
