"""The links behind ``src/instructrec``, the guard against second names, and the built wheel."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import instructrec
from instructrec.checkout import PACKAGES, missing_links, require_links

SOURCES = (*PACKAGES, "src", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


def import_in_fresh_python(module: str, cwd: Path, path: Path) -> str:
    """What ``import module`` prints to stderr; empty when it works."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )
    return done.stderr


def copy_of_the_sources(root: Path, target: Path) -> Path:
    """A clean copy, links kept: no build leftovers, no outputs."""
    leftovers = shutil.ignore_patterns("*.egg-info", "__pycache__")
    for name in SOURCES:
        if (root / name).is_dir():
            shutil.copytree(root / name, target / name, symlinks=True, ignore=leftovers)
        elif (root / name).exists():
            shutil.copy(root / name, target / name)
    return target


def without_links(checkout: Path) -> Path:
    """What Git leaves with core.symlinks=false: files that hold the link's target."""
    for name in PACKAGES:
        link = checkout / "src" / "instructrec" / name
        target = os.readlink(link)
        link.unlink()
        link.write_text(target)
    return checkout


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_a_relative_link_to_its_folder(root: Path, package: str) -> None:
    link = root / "src" / "instructrec" / package
    assert os.readlink(link) == f"../../{package}"
    assert link.resolve() == root / package and (root / package / "__init__.py").is_file()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_cannot_be_imported_by_its_folder_name(root: Path, package: str) -> None:
    message = import_in_fresh_python(package, root, root)
    assert f"ImportError: import 'instructrec.{package}', not '{package}'" in message
    assert "second copy of every registry" in message


def test_the_sources_run_without_an_installation(root: Path, tmp_path: Path) -> None:
    checkout = copy_of_the_sources(root, tmp_path)
    for package in ("instructrec", *(f"instructrec.{name}" for name in PACKAGES)):
        assert import_in_fresh_python(package, tmp_path, checkout / "src") == ""


def test_a_checkout_without_links_says_so_on_import(root: Path, tmp_path: Path) -> None:
    checkout = without_links(copy_of_the_sources(root, tmp_path))
    message = import_in_fresh_python("instructrec", tmp_path, checkout / "src")
    assert f"{checkout}/src/instructrec/rewards is a text file" in message
    assert "git config core.symlinks true && git checkout -- src/instructrec" in message
    assert "WSL" in message


def test_make_setup_refuses_a_checkout_without_links(root: Path, tmp_path: Path) -> None:
    checkout = without_links(copy_of_the_sources(root, tmp_path))
    for name in ("Makefile", "constraints.txt"):
        shutil.copy(root / name, checkout / name)
    done = subprocess.run(
        ["make", f"PYTHON={sys.executable}", "setup"], cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode != 0 and "made without link support" in done.stderr
    assert "Traceback" not in done.stderr and not (checkout / ".venv").exists()


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    for name in PACKAGES[:-1]:
        (tmp_path / name).mkdir()
    assert missing_links(tmp_path) == ["experiments"]
    with pytest.raises(ImportError, match="experiments does not exist"):
        require_links(tmp_path)
    (tmp_path / "experiments").mkdir()
    require_links(tmp_path)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_listed_before_they_are_loaded(package: str) -> None:
    module = importlib.import_module(f"instructrec.{package}")
    assert module.__all__ and set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="no attribute 'surely_not_there'"):
        module.surely_not_there  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_resolves(package: str) -> None:
    module = importlib.import_module(f"instructrec.{package}")
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_the_wheel_holds_the_five_packages_and_nothing_else(root: Path, tmp_path: Path) -> None:
    checkout = copy_of_the_sources(root, tmp_path / "checkout")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "wheel"]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    (wheel,) = (checkout / "wheel").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())

    info = f"instructrec-{instructrec.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"instructrec", info}
    assert f"{info}/licenses/LICENSE" in names and "instructrec/py.typed" in names
    expected = {
        path.relative_to(checkout).as_posix()
        for package in PACKAGES
        for pattern in ("*.py", "recipes/*.yaml")
        for path in (checkout / package).rglob(pattern)
        if "scripts" not in path.parts
    }
    assert len(expected) > len(PACKAGES)
    assert {f"instructrec/{name}" for name in expected} <= names
