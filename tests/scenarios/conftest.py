"""`pytest tests/scenarios --rewrite` brings the transcripts up to date: read the diff."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("scenarios", "transcripts").addoption(
        "--rewrite", action="store_true", help="write the actual output into the transcripts"
    )
