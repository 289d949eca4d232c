#!/usr/bin/env python3
"""Installs a Detectron2 that runs on current PyTorch, in pure Python.

Without SOURCE this takes the v0.6 source release from the package index, checks it against its
sha256, patches it (:mod:`detectron2_patches`) and installs it into the environment of the Python
that runs this file. A checkout is built the same way, without patches and without being changed.

Examples:
    python dev/install_detectron2.py                        # the patched v0.6
    python dev/install_detectron2.py --wheel-dir dist       # only write its wheel
    python dev/install_detectron2.py path/to/detectron2     # a checkout of the main branch
"""

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Optional

from detectron2_patches import PATCHES, PatchError, apply_patches
from detectron2_wheel import InstallError, collect_package, package_version, write_wheel

# The same Python sources and configs as the tag v0.6; the C++ sources are left out.
RELEASE = "pb1-detectron2==0.6"
RELEASE_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
RELEASE_TAG = "samplingfree"


def check_sha256(file: Path, expected: str) -> None:
    """Raises :class:`InstallError` if the sha256 of ``file`` is not ``expected``."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise InstallError(f"{file.name}: sha256 is {found}, expected {expected}; not used")


def run_pip(*args: str) -> None:
    """Runs the pip of this environment, with the user's own index settings."""
    if subprocess.run([sys.executable, "-m", "pip", *args]).returncode != 0:
        raise InstallError(f"failed: pip {' '.join(args)} (see pip's messages above)")


def download_release(folder: Path) -> Path:
    """Downloads the v0.6 source release and unpacks it.

    pip asks a source release for its metadata. That runs its ``setup.py``, which imports torch:
    hence no build isolation, and the hash in the requirements file, which pip checks before.

    Args:
        folder: an empty folder to work in.

    Returns:
        the folder that holds ``detectron2/`` and ``projects/``.
    """
    for module in ("torch", "setuptools"):
        if importlib.util.find_spec(module) is None:
            raise InstallError(f"{module} is missing: pip install torch setuptools first")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{RELEASE} --hash=sha256:{RELEASE_SHA256}\n")
    try:
        run_pip(
            *("download", "--quiet", "--no-deps", "--no-binary=:all:", "--no-build-isolation"),
            *("--require-hashes", f"--requirement={requirements}", f"--dest={folder}"),
        )
    except InstallError as error:
        raise InstallError(
            f"pip did not download {RELEASE} (its reason is above; pip 26.3 refuses the release's "
            "metadata): take the pip of constraints.txt, or download the .tar.gz and name it"
        ) from error
    return unpack_release(next(folder.glob("*.tar.gz")), folder)


def unpack_release(archive: Path, folder: Path) -> Path:
    """Checks the v0.6 source release against its sha256 and unpacks it into ``folder``."""
    check_sha256(archive, RELEASE_SHA256)
    with tarfile.open(archive) as tar:
        # The sha256 says what is in it; not every Python 3.11 takes the filter as an argument.
        tar.extraction_filter = lambda member, path: member
        tar.extractall(folder)
    return folder / RELEASE.replace("==", "-")


def checkout_tag(checkout: Path) -> str:
    """Names a checkout in a version: ``main``, or ``main.g<commit>`` where git knows it."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return "main"
    result = subprocess.run(command, capture_output=True, text=True)
    return f"main.g{result.stdout.strip()}" if result.returncode == 0 else "main"


def build_release(wheel_dir: Path, archive: Optional[Path] = None) -> Path:
    """Writes the wheel of the patched v0.6 release, downloaded if not given; returns its path."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = unpack_release(archive, folder) if archive else download_release(folder)
        package = collect_package(source, folder / "wheel")
        apply_patches(package, PATCHES)
        return write_wheel(package, f"{package_version(package)}+{RELEASE_TAG}", wheel_dir)


def build_checkout(checkout: Path, wheel_dir: Path) -> Path:
    """Writes the wheel of a checkout, which is left as it is, and returns its path."""
    with tempfile.TemporaryDirectory() as folder:
        package = collect_package(checkout, Path(folder))
        version = f"{package_version(package)}+{checkout_tag(checkout)}"
        return write_wheel(package, version, wheel_dir)


def kind_of(source: Optional[str]) -> str:
    """Tells what SOURCE is: "release", "checkout", "wheel", "archive" or "requirement".

    Raises:
        InstallError: it is a path, and none of these is there.
    """
    if not source:
        return "release"
    path = Path(source).expanduser()
    if path.is_dir():
        if all((path / name).is_file() for name in ("detectron2/__init__.py", "setup.py")):
            return "checkout"
        raise InstallError(
            f"{source}: not a checkout of Detectron2 (no detectron2/__init__.py and setup.py); "
            "give the folder that 'git clone' made"
        )
    if path.is_file() and path.name.endswith((".whl", ".tar.gz")):
        return "wheel" if path.suffix == ".whl" else "archive"
    # A URL or "name @ URL" has slashes too, a requirement by name has none.
    looks_like_path = ":" not in source and (os.sep in source or path.suffix == ".whl")
    if path.is_file() or looks_like_path:
        raise InstallError(
            f"{source}: no wheel, checkout or v0.6 .tar.gz of Detectron2 is there; "
            "check the path, or leave it out for the patched v0.6"
        )
    return "requirement"


def resolve(source: Optional[str], wheel_dir: Path) -> str:
    """Turns SOURCE into what pip installs: a wheel's path, or a requirement as it was given."""
    kind = kind_of(source)
    if kind == "requirement":
        return source
    if kind == "release":
        return str(build_release(wheel_dir))
    path = Path(source).expanduser()
    if kind == "wheel":
        return str(path)
    if kind == "archive":
        return str(build_release(wheel_dir, path))
    return str(build_checkout(path, wheel_dir))


def install(source: Optional[str], force: bool) -> None:
    """Installs SOURCE, and what it requires, into this environment."""
    spec = importlib.util.find_spec("detectron2")
    if spec is not None and not force:
        print(f"detectron2 is installed already ({spec.origin}): left alone; --force replaces it")
        return
    with tempfile.TemporaryDirectory() as folder:
        target = resolve(source, Path(folder))
        # Detectron2's own setup.py imports torch, so a requirement is built without isolation.
        isolation = [] if Path(target).is_file() else ["--no-build-isolation"]
        if force:
            run_pip("install", "--quiet", "--no-deps", "--force-reinstall", *isolation, target)
        run_pip("install", "--quiet", *isolation, target)
    print(f"installed Detectron2: {Path(target).name}")


def write(source: Optional[str], wheel_dir: Path) -> None:
    """Only writes the wheel of SOURCE into a folder."""
    target = resolve(source, wheel_dir)
    if Path(target).parent == wheel_dir:
        print(target)
    else:
        run_pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={wheel_dir}", target)


def main(argv: Optional[list] = None) -> int:
    """Runs the command line; returns the exit code."""
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="a pip requirement, a wheel, the path of a checkout, or the v0.6 release's .tar.gz "
        "(default: the patched v0.6, downloaded)",
    )
    parser.add_argument("--wheel-dir", type=Path, help="only write the wheel, into this folder")
    parser.add_argument("--check", action="store_true", help="only say whether SOURCE is usable")
    parser.add_argument("--force", action="store_true", help="replace an installed Detectron2")
    args = parser.parse_args(argv)
    try:
        if args.check:
            print(kind_of(args.source))
        elif args.wheel_dir is not None:
            write(args.source, args.wheel_dir)
        else:
            install(args.source, args.force)
    except (InstallError, PatchError) as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
