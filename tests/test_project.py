"""Files beside the code say what the code says: version, extras, targets and workflows."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from saft_hf import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FORMS = sorted((ROOT / ".github").rglob("*.yml"))


def test_the_version_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_workflows_and_forms_are_yaml_of_their_kind(path):
    content = yaml.safe_load(path.read_text())
    if path.parent.name == "workflows":
        assert content["permissions"] == {"contents": "read"}  # what a job needs beyond, it says
        for job in content["jobs"].values():
            assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        # A tag can be moved to other code, a commit cannot; dependabot moves the commit and its comment.
        used = re.findall(r"uses: (.*)", path.read_text())
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each) for each in used)
    elif path.parent.name == "ISSUE_TEMPLATE" and path.name != "config.yml":
        ids = [part.get("id") for part in content["body"] if part["type"] != "markdown"]
        assert len(set(ids)) == len(ids)
        assert {"name", "description"} <= content.keys()


def test_what_workflows_install_and_run_is_there():
    text = "".join(path.read_text() for path in FORMS)
    for extras in re.findall(r"-e '\.\[([\w,]+)\]'", text):
        assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_hooks_are_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text()
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert lint is not None
    run = {Path(line.split()[0]).name for line in lint[1].replace("$(BIN)", "bin").strip().splitlines()}
    assert {Path(hook["entry"].split()[0]).name for hook in hooks} == run


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_every_target_that_documents_name_exists():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / ".ci" / "run"]
    named = {name for page in pages for name in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", page.read_text(), re.M)}
    targets = {name for pair in named for name in pair if name}
    assert {"demo", "test", "lint"} <= targets
    for target in sorted(targets):
        found = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
