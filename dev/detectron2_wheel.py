"""Packs a source tree of Detectron2 into a wheel of pure Python.

Its own ``setup.py`` builds the C++ extension, which needs a compiler and the CUDA toolkit of the
installed PyTorch. Boxes, masks, RoIAlign and NMS do without it: torchvision has what they need.
"""

import base64
import hashlib
import re
import shutil
import zipfile
from pathlib import Path

# What Detectron2 imports, without its upper bounds of 2021. No torch: the user's own is kept.
REQUIRES = (
    "cloudpickle fvcore>=0.1.5 hydra-core>=1.1 iopath>=0.1.7 matplotlib omegaconf>=2.1 pillow>=7.1 "
    "pycocotools>=2.0.2 tabulate tensorboard termcolor>=1.1 tqdm>4.29.0 yacs>=0.1.8"
).split()
# What one that is not patched needs for its model zoo.
PKG_RESOURCES = "setuptools<81"
# Small projects that Detectron2 installs below its own name.
PROJECTS = {
    "point_rend": "PointRend/point_rend",
    "deeplab": "DeepLab/deeplab",
    "panoptic_deeplab": "Panoptic-DeepLab/panoptic_deeplab",
}


class InstallError(RuntimeError):
    """Something that the user can put right; its text is one line."""


def collect_package(source: Path, folder: Path) -> Path:
    """Copies what a wheel of Detectron2 holds; ``source`` stays as it is.

    Args:
        source: a checkout or an unpacked source release.
        folder: where to put the package.

    Returns:
        the package's folder, ``folder/detectron2``.
    """
    package = folder / "detectron2"
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "csrc")
    shutil.copytree(source / "detectron2", package, ignore=ignore, ignore_dangling_symlinks=True)
    configs = package / "model_zoo" / "configs"
    if (source / "configs").is_dir():  # a checkout; a source release has them in place
        shutil.rmtree(configs, ignore_errors=True)
        shutil.copytree(source / "configs", configs, ignore=ignore)
    for name, path in PROJECTS.items():
        if (source / "projects" / path).is_dir():
            shutil.copytree(source / "projects" / path, package / "projects" / name, ignore=ignore)
    return package


def package_version(package: Path) -> str:
    """Reads ``__version__`` out of a package without importing it."""
    text = (package / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r"^__version__ = [\"']([^\"'+]+)", text, re.MULTILINE)
    if match is None:
        raise InstallError(f"{package / '__init__.py'}: no __version__ in it; not Detectron2?")
    return match.group(1)


def write_wheel(package: Path, version: str, wheel_dir: Path) -> Path:
    """Packs a folder of Python sources and configs into a wheel.

    Args:
        package: the folder ``detectron2``.
        version: the wheel's version, with its local part.
        wheel_dir: where to write it; made if it is missing.

    Returns:
        the wheel's path.
    """
    info = f"detectron2-{version}.dist-info"
    files = {
        file.relative_to(package.parent).as_posix(): file.read_bytes()
        for file in sorted(package.rglob("*"))
        if file.suffix in (".py", ".yaml")
    }
    needs_old = any(b"import pkg_resources" in data for data in files.values())
    requires = [*REQUIRES, PKG_RESOURCES] if needs_old else REQUIRES
    metadata = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {version}",
        "Summary: Detectron2 in pure Python, without its C++ extension",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "License: Apache-2.0",
        "Requires-Python: >=3.8",
        *(f"Requires-Dist: {requirement}" for requirement in requires),
    ]
    wheel = [
        "Wheel-Version: 1.0",
        "Generator: install_detectron2",
        "Root-Is-Purelib: true",
        "Tag: py3-none-any",
    ]
    files[f"{info}/METADATA"] = "\n".join(metadata + [""]).encode()
    files[f"{info}/WHEEL"] = "\n".join(wheel + [""]).encode()
    record = [f"{name},sha256={_urlsafe_sha256(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join(record + [f"{info}/RECORD,,", ""]).encode()

    wheel_dir.mkdir(parents=True, exist_ok=True)
    path = wheel_dir / f"detectron2-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            # A ZipInfo of its own has a fixed date: the same sources give the same wheel.
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return path


def _urlsafe_sha256(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
