"""Where things stand in an application's source, by its syntax tree: nothing of it is run."""

import ast
from pathlib import Path

_HEAVY = {"torch", "torchvision", "tensorflow", "transformers", "jax", "sklearn", "pandas", "matplotlib"}


class Places:
    """Lines of one application's file."""

    def __init__(self, folder: Path) -> None:
        self.file = "application.py"
        self._files = {path.relative_to(folder).as_posix(): _tree(path) for path in sorted(folder.rglob("*.py"))}
        tree = self._files.get(self.file)
        self._lines: dict[str, int] = {}
        for node in ast.walk(tree) if tree else ():
            if isinstance(node, ast.ClassDef):
                self._lines[node.name] = node.lineno
                for inner in node.body:
                    for name in _names(inner):
                        self._lines[f"{node.name}.{name}"] = inner.lineno

    def of(self, *names: str) -> tuple[str, int | None]:
        """File and line of the first of the names that is there: `transform` of any class, or `Class.field`."""
        for name in names:
            for known, line in self._lines.items():
                if known == name or known.endswith(f".{name}"):
                    return self.file, line
        return self.file, None

    def heavy_imports(self) -> list[tuple[str, str, int]]:
        """Libraries that are imported as soon as a file is: (library, file, line)."""
        return [
            (library, file, node.lineno)
            for file, tree in self._files.items()
            for node in (tree.body if tree else ())
            for library in _imported(node)
            if library in _HEAVY
        ]


def _tree(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_text())
    except (SyntaxError, UnicodeDecodeError):
        return None  # importing it says what is wrong


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module.partition(".")[0]]
    return []
