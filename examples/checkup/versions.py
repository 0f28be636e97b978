"""Compare installed versions with those that this library requires."""

import configparser
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from examples.checkup.findings import Finding, judged, not_applicable

DISTRIBUTION = "magnet-llm"
PACKAGES = ("torch", "transformers", "peft", "safetensors", "huggingface_hub", "sentence-transformers")
# Every extra: what is optional must fit where it is there.
EXTRAS = ("eval", "plots", "ray", "dev")
SETUP = Path(__file__).resolve().parents[2] / "setup.cfg"


@dataclass
class Asked:
    """What this library asks of a package."""

    versions: SpecifierSet = field(default_factory=SpecifierSet)
    needed: bool = False


def requirements() -> tuple[str, dict[str, Asked]]:
    """Return what setup.cfg of this repository asks for, or where there is none, the installed distribution.

    In this order, for the metadata of an editable install are those of the day it was made.
    """
    if SETUP.is_file():
        python, lines = _of_setup_file()
    else:
        python, lines = metadata.metadata(DISTRIBUTION)["Requires-Python"], metadata.requires(DISTRIBUTION) or []
    asked: dict[str, Asked] = {}
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        extras = [extra for extra in ("", *EXTRAS) if marker is None or marker.evaluate({"extra": extra})]
        if extras:
            of_package = asked.setdefault(normalised(requirement.name), Asked())
            of_package.versions &= requirement.specifier
            of_package.needed |= "" in extras
    return python, asked


def _of_setup_file() -> tuple[str, list[str]]:
    """Return versions of Python, and lines of requirements with their extras as markers."""
    parser = configparser.ConfigParser()
    parser.read(SETUP, encoding="utf-8")
    lines = parser["options"]["install_requires"].split("\n")
    for extra, listed in parser["options.extras_require"].items():
        lines += [f'{line}; extra == "{extra}"' for line in listed.split("\n") if line]
    return parser["options"]["python_requires"], [line for line in lines if line]


def normalised(name: str) -> str:
    """Return the name of a distribution as indices compare it."""
    return name.lower().replace("_", "-").replace(".", "-")


def version_findings() -> list[Finding]:
    """Return one row for Python and for each package."""
    python, asked = requirements()
    here = platform.python_version()
    findings = [judged("version, Python", SpecifierSet(python).contains(here), f"{here} (wanted: {python or 'any'})")]
    for package in PACKAGES:
        name, wanted = f"version, {package}", asked.get(normalised(package), Asked())
        told = f"(wanted: {wanted.versions or 'any'})"
        try:
            installed = metadata.version(package)
        except metadata.PackageNotFoundError:
            missing = judged(name, False, f"not installed {told}") if wanted.needed else None
            findings.append(missing or not_applicable(name, "not installed; optional"))
            continue
        findings.append(judged(name, wanted.versions.contains(installed, prereleases=True), f"{installed} {told}"))
    return findings


__all__ = ["version_findings"]
