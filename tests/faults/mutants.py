"""Random wrong changes: a comparison flipped, a constant off by one, a statement deleted ...

The draw depends only on the seed and the code to be mutated, so changes to other code don't affect it.
"""

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.trials import Change

# The code to mutate, and the tests of that code in the order in which they are tried.
PARTS = {
    "config": (("pspnet/config",), ("tests/config", "tests/test_contracts.py", "tests/test_messages.py")),
    "data": (("pspnet/raw", "pspnet/dataset", "pspnet/inspection"),
        ("tests/raw", "tests/dataset", "tests/inspection", "tests/stages/test_prepare.py")),
    "losses": (("pspnet/losses",), ("tests/losses",)),
    "metrics": (("pspnet/metrics.py",), ("tests/test_metrics.py", "tests/registry/test_gate.py")),
    "model": (("pspnet/model",), ("tests/model",)),
    "registry": (("pspnet/registry",), ("tests/registry",)),
    "training": (("pspnet/training",), ("tests/training/test_parts.py", "tests/training")),
    "flows": (("flows",), ("tests/flows",)),
}  # fmt: skip
SHARES = {"metrics": 3, "config": 4, "losses": 5, "model": 5, "registry": 5, "training": 5, "flows": 5, "data": 8}

COMPARISONS: dict[type[ast.cmpop], ast.cmpop] = {
    ast.Lt: ast.LtE(), ast.LtE: ast.Lt(), ast.Gt: ast.GtE(), ast.GtE: ast.Gt(), ast.Eq: ast.NotEq(),
    ast.NotEq: ast.Eq(), ast.In: ast.NotIn(), ast.NotIn: ast.In(), ast.Is: ast.IsNot(), ast.IsNot: ast.Is(),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(), ast.Sub: ast.Add(), ast.Mult: ast.Add(), ast.FloorDiv: ast.Mult(), ast.Mod: ast.Add(),
}  # fmt: skip
# Calls with output that only people see, and names of limits on how long or how often something can happen.
SPOKEN = {"Problem", "print", "Trouble", "Refused", "info", "warning", "error", "log", "tell", "tick", "Remark"}
PATIENCE = re.compile(r"SECONDS|LONGEST|SHOWN|LINES|^MOST|KEPT|_PX$|ATTEMPTS|AT_ONCE")


@dataclass(frozen=True)
class Mutant:
    part: str
    name: str
    what: str
    change: Change
    tests: tuple[str, ...]


def drawn(tree: Path, seed: int) -> list[Mutant]:
    found = []
    drawn_of: Counter[str] = Counter()
    for part, count in SHARES.items():
        sources, tests = PARTS[part]
        candidates = [one for source in sources for path in _files(tree / source) for one in _candidates(tree, path)]
        candidates.sort(key=lambda one: hashlib.sha256(f"{seed}\0{one.key}".encode()).hexdigest())
        for number in range(1, count + 1):
            one = min(candidates, key=lambda one: drawn_of[one.kind])  # draw each kind equally often, then by seed
            candidates = [other for other in candidates if other.line != one.line]
            drawn_of[one.kind] += 1
            own = (*_likely(tree, tests, one.change.file), *(test for test in tests if (tree / test).exists()))
            found.append(Mutant(part, f"{part}-{number}", one.what, one.change, own))
    return found


def _likely(tree: Path, tests: tuple[str, ...], file: str) -> list[str]:
    """Return the tests named after the module or its folder. They run first, because they catch most mutants."""
    path = Path(file)
    names = [f"test_{name}.py" for name in (path.stem, path.parent.name)]
    return [f"{folder}/{name}" for name in names for folder in tests if (tree / folder / name).is_file()]


@dataclass(frozen=True)
class _Candidate:
    kind: str
    line: str
    key: str
    what: str
    change: Change


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def _candidates(tree: Path, path: Path) -> Iterator[_Candidate]:
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(tree).as_posix()
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    content = text.encode()

    def place(line: int, column: int) -> int:
        return starts[line - 1] + column

    seen: dict[str, int] = {}
    for kind, node, new in _mutations(ast.parse(text)):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        first, last = place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        old = content[first:last].decode()
        # Use the whole line, so that the text occurs only once and nothing else is changed.
        begin, end = starts[node.lineno - 1], starts[node.end_lineno]
        before = content[begin:end].decode()
        after = content[begin:first].decode() + new + content[last:end].decode()
        key = f"{name}\0{kind}\0{before}\0{old}"
        seen[key] = seen.get(key, 0) + 1
        what = f"{name}:{node.lineno} {kind}: {' '.join(old.split())[:60]} -> {' '.join(new.split())[:60]}"
        change = Change(name, content.decode(), (content[:begin].decode() + after + content[end:].decode()))
        yield _Candidate(kind, f"{name}:{node.lineno}", f"{key}\0{seen[key]}", what, change)


def _mutations(tree: ast.Module) -> Iterator[tuple[str, ast.expr | ast.stmt, str]]:
    for node in _plausible(tree):
        match node:
            case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
                yield (
                    "comparison",
                    node,
                    _written(ast.Compare(node.left, [COMPARISONS[type(operator)]], node.comparators)),
                )
            case ast.BinOp(op=operator) if type(operator) in ARITHMETIC and not _is_text(node):
                yield "arithmetic", node, _written(ast.BinOp(node.left, ARITHMETIC[type(operator)], node.right))
            case ast.Constant(value=int() as value) if not isinstance(value, bool):
                yield "off by one", node, str(value + 1)
            case ast.BoolOp(op=ast.And()):
                yield "and/or", node, _written(ast.BoolOp(ast.Or(), node.values))
            case ast.BoolOp(op=ast.Or()):
                yield "and/or", node, _written(ast.BoolOp(ast.And(), node.values))
            case ast.If(test=test):
                yield "condition negated", test, _written(ast.UnaryOp(ast.Not(), test))
            case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
                yield "returns None", node, "return None"
            case ast.Expr(value=ast.Call()) | ast.AugAssign():
                yield "statement deleted", node, "pass"


def _plausible(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes worth mutating: no docstrings, annotations, messages or times."""
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.Assert():
            return
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in SPOKEN:
            return
        case ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name))) if name in SPOKEN:
            return
        case ast.Assign(targets=[ast.Name(id=name)]) if PATIENCE.search(name):
            return
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.AnnAssign(value=value):
            if value is not None:
                yield from _plausible(value)
            return
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            for statement in [*node.args.defaults, *node.body]:
                yield from _plausible(statement)
            return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _plausible(child)


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )


def _written(node: ast.expr) -> str:
    return f"({ast.unparse(ast.fix_missing_locations(node))})"
