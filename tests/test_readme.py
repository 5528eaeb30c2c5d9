"""README's commands: the configs they name are there, and the command line takes their options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from cvaecli.cli import app
from cvaecli.config import loading as config

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", README, flags=re.S | re.M)
LINES = [line.partition(" #")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = sorted(
    {
        part.strip().removesuffix("; done")
        for line in LINES
        for part in re.split(r"&&|; do", line)
        # Not the overview, which names choices: NAME|FILE, [RUN].
        if part.strip().startswith("cvae ") and not re.search(r"[\[|]", part)
    }
)


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_line_takes_it(line: str) -> None:
    command, words = get_command(app), re.split(r"\s{2,}", line)[0].replace("...", "")
    arguments = shlex.split(words)[1:]
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context("cvae", arguments, resilient_parsing=False).close()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"--config ([\w./-]+)", README)) - {"NAME"}))
def test_the_config_is_built_in(name: str) -> None:
    config.load(name)


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (Path(__file__).parent.parent / picture).is_file(), picture
