"""The installer of Detectron2, offline: patches, checksum, wheel and command line."""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import detectron2_patches
import install_detectron2
from detectron2_patches import PATCHES, Patch, PatchError, apply_patches

SCRIPT = Path(install_detectron2.__file__)


def write_files(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def checkout(tmp_path):
    """A folder laid out as a checkout of Detectron2's main branch."""
    return write_files(
        tmp_path / "checkout",
        {
            "setup.py": "raise SystemExit('must not run')\n",
            "detectron2/__init__.py": '__version__ = "0.6"\n',
            "detectron2/model_zoo/__init__.py": "import pkg_resources\n",
            "detectron2/layers/csrc/vision.cpp": "",
            "configs/Base.yaml": "VERSION: 2\n",
            "configs/common/train.py": "train = dict()\n",
            "projects/PointRend/point_rend/__init__.py": "",
            "projects/Other/other/__init__.py": "",
        },
    )


def listing(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def run_cli(*args):
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


# Mends


@pytest.mark.parametrize("text", ["", "np.int np.int"], ids=["missing", "too often"])
def test_patch_that_does_not_fit_names_file_and_pattern(tmp_path, text):
    write_files(tmp_path, {"data/build.py": text})
    with pytest.raises(PatchError, match=r"detectron2/data/build\.py: 'np\.int' found \d times"):
        apply_patches(tmp_path, [Patch("data/build.py", "np.int", "int", "alias is gone")])
    assert (tmp_path / "data/build.py").read_text() == text


def test_patchs_cover_what_current_libraries_dropped():
    assert len(PATCHES) == 33
    assert len({(patch.path, patch.old) for patch in PATCHES}) == len(PATCHES)


def test_import_guard_is_silent_until_the_extension_is_used(tmp_path):
    guard = detectron2_patches._IMPORT_EXTENSION_IF_BUILT.replace("detectron2", "absent_detectron2")
    names = {}
    exec(guard, names)
    with pytest.raises(ImportError, match="box_iou_rotated: built without the C\\+\\+ extension"):
        names["_C"].box_iou_rotated()


# The release


def test_release_with_another_sha256_is_refused(tmp_path):
    archive = tmp_path / "pb1-detectron2-0.6.tar.gz"
    archive.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    result = run_cli(archive, "--wheel-dir", tmp_path / "out")
    assert result.returncode == 2
    assert found in result.stderr and install_detectron2.RELEASE_SHA256 in result.stderr
    assert not (tmp_path / "out").exists()


def test_release_is_patched_and_versioned(tmp_path, monkeypatch):
    files = {"detectron2/__init__.py": '__version__ = "0.6"\n'}
    for patch in PATCHES:
        name = f"detectron2/{patch.path}"
        files[name] = files.get(name, "") + (patch.old + "\n") * patch.count
    source = write_files(tmp_path / "pb1-detectron2-0.6", files)
    archive = tmp_path / "release.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, source.name)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(install_detectron2, "RELEASE_SHA256", sha256)

    wheel = install_detectron2.build_release(tmp_path / "out", archive)

    assert wheel.name == "detectron2-0.6+samplingfree-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as content:
        assert b"Image.BILINEAR" in content.read("detectron2/data/transforms/transform.py")
        for name in content.namelist():
            assert b"pkg_resources" not in content.read(name), name
        assert b"setuptools" not in content.read("detectron2-0.6+samplingfree.dist-info/METADATA")


# A checkout


def test_checkout_gives_a_pure_wheel_with_configs(checkout, tmp_path):
    before = listing(checkout)
    result = run_cli(checkout, "--wheel-dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    assert wheel.name == "detectron2-0.6+main-py3-none-any.whl"
    assert result.stdout.strip() == str(wheel)
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        metadata = content.read("detectron2-0.6+main.dist-info/METADATA").decode()
    assert {
        "detectron2/__init__.py",
        "detectron2/model_zoo/configs/Base.yaml",
        "detectron2/model_zoo/configs/common/train.py",
        "detectron2/projects/point_rend/__init__.py",
    } < names
    assert not any("csrc" in name or "other" in name for name in names)
    assert "Requires-Dist: setuptools<81" in metadata
    assert "torch" not in metadata
    assert listing(checkout) == before


def test_wheel_installs_and_imports(checkout, tmp_path):
    """pip checks the wheel's RECORD; the target folder keeps this environment as it is."""
    wheel = install_detectron2.build_checkout(checkout, tmp_path / "out")
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    assert (target / "detectron2" / "model_zoo" / "configs" / "Base.yaml").is_file()


# The command line


@pytest.mark.parametrize("kind", ["no such path", "no such wheel", "another folder", "a file"])
def test_bad_source_is_one_line_and_exit_code_2(tmp_path, kind):
    source = {
        "no such path": tmp_path / "nowhere",
        "no such wheel": "nowhere.whl",
        "another folder": tmp_path,
        "a file": write_files(tmp_path, {"notes.txt": ""}) / "notes.txt",
    }[kind]
    for options in (["--wheel-dir", tmp_path / "out"], ["--check"], ["--force"]):
        result = run_cli(source, *options)
        assert result.returncode == 2
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert str(source) in result.stderr


def test_requirements_are_handed_on_to_pip(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(install_detectron2, "run_pip", lambda *args: calls.append(args))
    requirement = "detectron2 @ git+https://example.com/detectron2.git"
    assert install_detectron2.main([requirement, "--wheel-dir", str(tmp_path)]) == 0
    assert calls[0][0] == "wheel" and calls[0][-1] == requirement


@pytest.mark.parametrize("force", [False, True])
def test_an_installed_detectron2_is_left_alone_unless_forced(tmp_path, monkeypatch, capsys, force):
    write_files(tmp_path, {"site/detectron2/__init__.py": "", "new.whl": ""})
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    calls = []
    monkeypatch.setattr(install_detectron2, "run_pip", lambda *args: calls.append(args))
    args = [str(tmp_path / "new.whl")] + ["--force"] * force
    assert install_detectron2.main(args) == 0
    assert bool(calls) == force
    assert ("left alone" in capsys.readouterr().out) != force
