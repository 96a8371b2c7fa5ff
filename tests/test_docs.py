"""The README and docs/: their links, their length, and the flags and files that they name."""

import pathlib
import re

import pytest

import flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md"), *ROOT.glob("tiny_imagenet/*.md")]
PROGRAMS = ("train", "evaluate", "report")


def text(page):
    return page.read_text(encoding="utf-8")


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    """Each relative link leads to a file, and its anchor to a heading."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`(?!\])", "", text(page), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path), link


def test_readme_is_short_and_links_every_page():
    readme = text(ROOT / "README.md")
    assert readme.count("\n") <= 200
    for page in ROOT.glob("docs/*.md"):
        assert f"(docs/{page.name})" in readme, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_in_commands_exist(page):
    """Each --flag of a command `python PROGRAM.py ...` is one of that program's."""
    for program, rest in re.findall(r"python (\w+)\.py([^`#\n]*)", text(page)):
        if program not in PROGRAMS:
            continue
        others = set(flags.FLAGS)
        getattr(flags, f"define_{program}_flags")()
        try:
            own = set(flags.FLAGS)
        finally:
            for name in own - others:
                delattr(flags.FLAGS, name)
        for name in re.findall(r"--(\w+)", rest):
            assert {name, name.removeprefix("no")} & {*own, "help"}, (program, name)
