"""The form of a transcript: comments and commands, `----`, all that they lead to, an empty line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

RULE = "----"
NOTHING = "nothing"
"""The output of commands that lead to nothing."""


class TranscriptError(Exception):
    """A transcript is not written as it should be; the message names the line."""


@dataclass(frozen=True)
class Block:
    comments: tuple[str, ...]
    commands: tuple[str, ...]
    output: tuple[str, ...]
    line: int
    """Where its first line stands, counted from 1."""


def parse(text: str) -> list[Block]:
    """Raises TranscriptError."""
    blocks = []
    start = 0
    lines = text.splitlines()
    for at in range(len(lines) + 1):
        if at < len(lines) and lines[at].strip():
            continue
        if at > start:
            blocks.append(_parse_block(lines[start:at], start + 1))
        start = at + 1
    return blocks


def _parse_block(lines: list[str], number: int) -> Block:
    head, output = lines, []
    if RULE in lines:
        head, output = lines[: lines.index(RULE)], lines[lines.index(RULE) + 1 :]
    comments = tuple(line for line in head if line.startswith("#"))
    commands = tuple(line for line in head if not line.startswith("#"))
    if commands and tuple(head) != comments + commands:
        raise TranscriptError(f"line {number}: comments come before the commands of a block")
    if not commands and output:
        raise TranscriptError(f"line {number}: an output without commands")
    return Block(comments, commands, tuple(output), number)


def run(blocks: list[Block], command: Callable[[str], list[str]]) -> str:
    """The transcript as it should be: each block with the output that its commands have now.

    Raises TranscriptError where a command cannot be carried out as it is written.
    """
    parts = []
    for block in blocks:
        lines = [*block.comments, *block.commands]
        if block.commands:
            output: list[str] = []
            for line in block.commands:
                try:
                    output += command(line)
                except (
                    AttributeError,
                    LookupError,
                    TypeError,
                    ValueError,
                    SyntaxError,
                    AssertionError,
                ) as error:
                    raise TranscriptError(
                        f"line {block.line}: {line!r}: {type(error).__name__}: {error}"
                    ) from error
            lines += [RULE, *(output or [NOTHING])]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
