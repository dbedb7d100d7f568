"""YAML as hands write it, and as nobody should."""

from pathlib import Path

import pytest

from visa.artifacts.configs import read_config, read_yaml


def test_numbers_and_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("rate: 1e-3\nwords: [a, 'b']\nnone:\n")
    assert read_yaml(path) == {"rate": 1e-3, "words": ["a", "b"], "none": None}
    path.write_text("# nothing\n")
    assert read_yaml(path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x\n", "it has an alias: write the value out"),
        ("[" * 5000, "it is nested deeper than 50"),
        ("a: [1\nb: 2\n", r"line \d: "),
        ("a: !!python/object/apply:os.system ['true']\n", "os.system"),
        ("a" * (1 << 21), "it has more than 1 MB"),
        ("a: 1\na: 2\n", "a"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.yaml is no readable YAML \(.*{message}") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_base_that_is_no_list_of_files(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for base in ("3", "{a: 1}", "[[a]]"):
        path.write_text(f"base: {base}\n")
        with pytest.raises(ValueError, match=r"a\.yaml: base is .*: give a list of files"):
            read_config(path)


def test_layers_that_cannot_be_merged(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("data: {num_steps: 4}\n")
    path = tmp_path / "a.yaml"
    path.write_text("base: [base.yaml]\ndata: [1, 2]\n")
    with pytest.raises(ValueError, match=r"a\.yaml cannot be merged over its bases \(") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
