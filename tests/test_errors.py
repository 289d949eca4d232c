"""Files that cannot be written are known before the work, in one line."""

import pytest

from sampling_free import BadInput
from sampling_free.errors import require_writable


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
