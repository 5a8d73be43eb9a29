"""The tree keeps the style's limits that no linter knows: sizes, empty packages, names, reasons beside exceptions."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES_MAX = 500
BODY_MAX = 50
NAMELESS = re.compile(r"(^|_)(utils?|helpers?|common|misc|manager|impl)$")
# An exception names its code in square or after a colon, as ruff and mypy want it, and then its reason.
SILENCED = re.compile(
    r"#\s*(noqa|type:\s*ignore)\b(?P<codes>:\s*[A-Z0-9]+(,\s*[A-Z0-9]+)*|\[[a-z, -]+\])?(?P<reason>.*)$"
)


def sources() -> list[Path]:
    """Return every hand-written Python file that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],  # noqa: S607 - whichever git is here.
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    paths = [ROOT / name for name in sorted(set(listed.stdout.split())) if not name.startswith("libs/protogen/src/")]
    return [path for path in paths if path.exists()]


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield name and lines of body, without the docstring, of every function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            yield node.name, (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def is_list_of_ports(name: str, tree: ast.Module) -> bool:
    """Tell whether a file only names the ports of a service, which have a module a subject and one door."""
    package = Path(name).parent
    own = f"{package.parent.name}.ports."
    imports, exported = tree.body[1:-1], tree.body[-1]
    return (
        package.name == "ports"
        and all(isinstance(each, ast.ImportFrom) and (each.module or "").startswith(own) for each in imports)
        and isinstance(exported, ast.Assign)
        and ast.unparse(exported.targets[0]) == "__all__"
    )


def faults(name: str, text: str) -> list[str]:
    """Return how one file breaks the style."""
    tree = ast.parse(text)
    found = [f"{function}: {size} lines" for function, size in functions(tree) if size > BODY_MAX]
    if text.count("\n") > LINES_MAX:
        found.append(f"{text.count(chr(10))} lines")
    if Path(name).name == "__init__.py" and len(tree.body) > 1 and not is_list_of_ports(name, tree):
        found.append("a package's __init__ holds a docstring and nothing else")
    if NAMELESS.search(Path(name).stem):
        found.append("a name that says nothing of what is inside")
    for number, line in enumerate(text.splitlines(), 1):
        silenced = SILENCED.search(line)
        if silenced and not (silenced["codes"] and re.search(r"[A-Za-z]{3}", silenced["reason"])):
            found.append(f"line {number}: an exception without a code or a reason")
    return found


def test_the_tree_keeps_the_styles_limits() -> None:
    """No file of the tree breaks a limit."""
    paths = sources()
    assert paths
    names = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    assert {name: found for name, text in names.items() if (found := faults(name, text))} == {}


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("long.py", "x = 1\n" * 501, "501 lines"),
        ("deep.py", "def deep():\n" + "    x = 1\n" * 51, "deep: 51 lines"),
        ("a/__init__.py", '"""A."""\nimport os\n', "docstring and nothing else"),
        ("a/__init__.py", '"""A."""\nfrom a.ports.b import B\n__all__ = ["B"]\n', "docstring and nothing else"),
        ("a/ports/__init__.py", '"""A."""\nfrom a.domain.b import B\n__all__ = ["B"]\n', "docstring and nothing else"),
        ("a/ports/__init__.py", '"""A."""\nfrom a.ports.b import B\nx = B()\n', "docstring and nothing else"),
        ("a/string_utils.py", "", "says nothing"),
        ("quiet.py", "import os  # noqa: F401\n", "without a code or a reason"),
        ("quiet.py", "import os  \x23 type: ignore  \x23 because it must be\n", "without a code or a reason"),
    ],
)
def test_a_broken_limit_is_seen(name: str, text: str, fault: str) -> None:
    """Each limit can fail."""
    assert any(fault in each for each in faults(name, text))


def test_what_the_style_allows_is_not_a_fault() -> None:
    """A function of fifty lines below its docstring, an exception with its reason, and one door to ports, pass."""
    body = '    """Say.\n\n    More.\n    """\n' + "    x = 1\n" * 50
    assert faults("fine.py", "def fine():\n" + body + "import os  # noqa: F401 - re-exported on purpose.\n") == []
    assert faults("a/ports/__init__.py", '"""A."""\nfrom a.ports.b import B\n__all__ = ["B"]\n') == []
