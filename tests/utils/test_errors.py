"""Files that cannot be written are known before the work, in one line."""

import pytest

from sampling_free import BadInput
from sampling_free.utils.errors import printable, require_writable, require_writable_folder


def test_a_file_in_a_new_folder_can_be_written(tmp_path):
    path = tmp_path / "a" / "b.json"
    require_writable("--json", str(path))
    assert path.parent.is_dir() and not path.exists()
    path.write_text("kept")
    require_writable("--json", str(path))
    assert path.read_text() == "kept"
    require_writable("--json", None)


@pytest.mark.parametrize("name, reason", [("folder", "is a folder"), ("file/x.json", "--json")])
def test_another_is_one_line_with_the_option(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    path = str(tmp_path / name)
    with pytest.raises(BadInput, match="cannot be written") as e:
        require_writable("--json", path)
    assert reason in str(e.value) and path in str(e.value) and "\n" not in str(e.value)


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    require_writable_folder("train.output_dir", str(tmp_path / "a" / "b"))
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("name, reason", [("file", "is a file"), ("file/x", "Not a directory")])
@pytest.mark.parametrize("option, sign", [("train.output_dir", "="), ("--folder", " ")])
def test_another_folder_is_one_line_with_the_option(tmp_path, name, reason, option, sign):
    (tmp_path / "file").write_text("")
    path = str(tmp_path / name)
    with pytest.raises(BadInput) as e:
        require_writable_folder(option, path)
    wanted = f"{option}{sign}{path}: cannot be written ({reason}); give another folder"
    assert str(e.value) == wanted


@pytest.mark.parametrize(
    "message, line",
    [
        ("a\nb\t c", "a b c"),
        ("Zo\u00eb \u4e2d", "Zo\u00eb \u4e2d"),
        ("\udcff.png", "\\udcff.png"),
        ("\x1b[2J\x00", "\\x1b[2J\\x00"),
    ],
)
def test_a_message_is_one_line_for_any_terminal_and_log(message, line):
    assert printable(message) == str(BadInput(message)) == line
    line.encode()
