"""Lists doc texts that don't stand by themselves, and fails if there are any. Run by scripts/check.

A doc text is a docstring or a string under an attribute or a constant. One that begins with a preposition, a relative
pronoun or a conjunction continues the name above it and can't be understood alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from measuring.texts import CHECKED_STARTS, doc_texts, starting_with
from testing.sources import Finding, read_sources

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Check the folders of the command line, and exit with status 1 if a text is a fragment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="folders of Python files, below the checkout")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    options = parser.parse_args()
    fragments = find_fragments(options.root, options.folders)
    for fragment in fragments:
        print(fragment)
    if fragments:
        sys.exit(f"{len(fragments)} doc texts begin in the middle of a sentence; CONTRIBUTING.md has the rule")


def find_fragments(root: Path, folders: Sequence[str]) -> list[Finding]:
    """Find the doc texts whose first word is one of CHECKED_STARTS, sorted by folder, file and line."""
    texts = [text for folder in folders for text in doc_texts(read_sources(root, folder))]
    return sorted(starting_with(texts, CHECKED_STARTS), key=lambda text: (text.path, text.line))


if __name__ == "__main__":
    main()
