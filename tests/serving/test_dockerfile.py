"""The Dockerfile against what it names: files, extras, the command and its options, port, user, the check of health.

Nothing is built here. What `docker build` would copy and install is compared with the tree and pyproject.toml.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import typer.main

import pfdiff
from pfdiff.cli import app

ROOT = Path(next(iter(pfdiff.__path__)))
GUIDE = ROOT / "docs" / "guides" / "serving.md"


@pytest.fixture(scope="module")
def lines() -> list[tuple[str, str]]:
    """(instruction, rest) in order, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    pairs = [line.split(None, 1) for line in kept.splitlines() if line.strip()]
    return [(word.upper(), rest.strip()) for word, rest in pairs]


def rest_of(lines: list[tuple[str, str]], word: str) -> list[str]:
    found = [rest for one, rest in lines if one == word]
    assert found, f"no {word}"
    return found


@pytest.fixture(scope="module")
def arguments(lines: list[tuple[str, str]]) -> dict[str, str]:
    """The build arguments and what they are without being given."""
    return dict(rest.split("=", 1) for rest in rest_of(lines, "ARG"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def entry(lines: list[tuple[str, str]]) -> list[str]:
    return json.loads(rest_of(lines, "ENTRYPOINT")[-1])


def left_out(path: str) -> bool:
    """Whether .dockerignore keeps a file of the tree, or a folder above it, from `COPY . .`."""
    above = [one.as_posix() for one in (Path(path), *Path(path).parents)]
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    anywhere = [pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")]
    named = any(fnmatch(Path(one).name, pattern) for one in above for pattern in anywhere)
    return named or any(fnmatch(one, pattern) for one in above for pattern in patterns)


def test_what_is_copied_exists_and_what_the_build_reads_is_copied(
    lines: list[tuple[str, str]], project: dict[str, Any]
) -> None:
    for rest in rest_of(lines, "COPY"):
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists(), source
    extension = project["tool"]["setuptools"]["ext-modules"][0]
    read = ["pyproject.toml", "constraints.txt", project["project"]["readme"], *project["project"]["license-files"]]
    read += [*extension["sources"], *extension["depends"], "serving/page/page.html", "export/zoo/fashion.safetensors"]
    for package in project["tool"]["setuptools"]["packages"]:
        folder = package.replace(".", "/").replace("pfdiff", ".", 1)
        read.append(str(Path(folder) / "__init__.py"))
    for path in read:
        assert (ROOT / path).exists(), path
        assert not left_out(path), path
    assert left_out(".git/HEAD")
    assert left_out(".venv/bin/python")
    assert left_out("engine/runtime/_cpu.abi3.so")
    assert left_out("work/fashion.engine/engine.json")


def test_python_is_one_that_the_package_takes(lines: list[tuple[str, str]], project: dict[str, Any]) -> None:
    found = re.fullmatch(r"python:(3\.\d+)-slim", rest_of(lines, "FROM")[0])
    assert found
    assert f"Programming Language :: Python :: {found[1]}" in project["project"]["classifiers"]


def test_extras_and_build_arguments_exist(arguments: dict[str, str], project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    said = [arguments["EXTRAS"]]
    for page in (ROOT / "Dockerfile", GUIDE):
        given = re.findall(r"--build-arg (\w+)=(\S+)", page.read_text(encoding="utf-8"))
        assert {name for name, _ in given} == {*arguments}, page
        said += [value for name, value in given if name == "EXTRAS"]
        assert all(re.fullmatch(r"cpu|cu1[23]\d", value) for name, value in given if name == "TORCH")
    for one in said:
        assert "serve" in one.split(",")
        assert {*one.split(",")} <= {*extras}


def test_install_uses_the_arguments_and_the_pinned_versions(
    lines: list[tuple[str, str]], arguments: dict[str, str]
) -> None:
    (install,) = [rest for rest in rest_of(lines, "RUN") if "uv pip install" in rest]
    for name in arguments:
        assert f"${name}" in install, name
    assert "-c constraints.txt" in install
    backend = re.search(r'--torch-backend "\$TORCH"', install)
    assert backend
    assert install.count(".[$EXTRAS]") == 1


def test_the_command_and_its_options_exist(entry: list[str]) -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name=entry[0])
    assert [one.value for one in scripts][:1] == ["pfdiff.cli:command"]
    group = typer.main.get_command(app)
    command = group.commands[entry[1]]  # pyright: ignore[reportAttributeAccessIssue]  # a group has them
    with command.make_context(entry[1], [*entry[2:], "/engines/fashion.engine"]) as context:
        given = context.params
    assert (given["host"], given["port"]) == ("0.0.0.0", 8000)
    (key,) = [one for one in command.params if one.name == "api_key"]
    for page in (ROOT / "Dockerfile", GUIDE):
        assert f"-e {key.envvar}=" in page.read_text(encoding="utf-8")


def test_port_user_and_health(lines: list[tuple[str, str]], entry: list[str]) -> None:
    port = entry[entry.index("--port") + 1]
    assert rest_of(lines, "EXPOSE") == [port]
    words = [word for word, _ in lines]
    (user,) = rest_of(lines, "USER")
    assert user != "root"
    (made,) = [index for index, (word, rest) in enumerate(lines) if word == "RUN" and "useradd" in rest]
    assert shlex.split(lines[made][1])[-1] == user
    assert made < words.index("USER") < words.index("ENTRYPOINT")
    (health,) = rest_of(lines, "HEALTHCHECK")
    code = shlex.split(health[health.index("CMD") + 4 :])
    assert code[:2] == ["python", "-c"]
    assert f"http://127.0.0.1:{port}/healthz" in code[2]
    compile(code[2], "HEALTHCHECK", "exec")
    pytest.importorskip("fastapi", reason="pip install 'pfdiff[serve]'")
    from pfdiff.serving.guard import OPEN_PATHS

    assert "/healthz" in OPEN_PATHS  # also of a server with a key


def test_the_guides_mount_is_where_the_command_reads() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    (command,) = re.findall(r"^docker run .*$", text, re.M)
    words = shlex.split(command.replace("$PWD", "/here"))
    mounted = words[words.index("-v") + 1].split(":")[1]
    assert words[-1] == mounted
    assert words[words.index("-p") + 1].endswith(":8000")
