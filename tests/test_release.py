"""The package, the changelog, the citation and the README agree on the version."""

import re
from pathlib import Path

import yaml

import implicit_reasoning


def read(name):
    return Path(name).read_text(encoding="utf-8")


def test_all_state_one_version():
    version = implicit_reasoning.__version__
    released = re.findall(r"^## \[(\d[^\]]*)\] - (\d{4}-\d\d-\d\d)$", read("CHANGELOG.md"), re.M)
    citation = yaml.safe_load(read("CITATION.cff"))
    assert released[0] == (version, str(citation["date-released"]))
    assert citation["version"] == version
    assert f"version = {{{version}}}" in read("README.md")


def test_the_workflow_and_the_templates_are_whole():
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    commands = [step.get("run") for step in workflow["jobs"]["ci"]["steps"]]
    assert ".ci/run" in commands
    for path in Path(".github/ISSUE_TEMPLATE").glob("*.yml"):
        template = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert path.stem == "config" or {"name", "description", "body"} <= template.keys()
    assert yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
