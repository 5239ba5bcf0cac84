"""The grammar of filters: a small part of Python's, parsed with `ast`, and ``~``. Nothing is ever evaluated as Python.

`slm.data.curate.filters` says what filters mean; `parse` makes the tree of `slm.data.curate.expression` from their text.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize

from slm.config.errors import ConfigError
from slm.data.curate import expression as ex

OWN = "column"
"""``column.x`` is the source's column x, also if a built-in has that name."""

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_CONSTANTS = {"true": True, "false": False}
_HINTS = (
    (re.compile(r"&&|\|\|"), "Write 'and' and 'or'."),
    (re.compile(r"<>|!(?!=)"), "Write '!=' for unequal and 'not' for not."),
    (re.compile(r"(?<![=!<>])=(?!=)"), "Equality is '=='."),
)


def parse(text: str) -> ex.Node:
    """The tree of a filter. Raises `ConfigError` that names the place of the fault."""
    return _Parser(text).parse()


class _Parser:
    """From text to tree, by way of Python's own parser."""

    def __init__(self, text: str) -> None:
        line = text.replace("\n", " ").rstrip()
        self.source = line.lstrip()
        self.shift = len(line) - len(self.source)
        self.masked = self.source

    def parse(self) -> ex.Node:
        if not self.source:
            raise ConfigError("A filter is empty. Write a predicate such as 'int_score >= 3', or leave it out.")
        try:
            self.masked = self._mask()
            return self._truth(ast.parse(self.masked, mode="eval").body)
        except SyntaxError as error:
            hint = next((hint for pattern, hint in _HINTS if pattern.search(_without_strings(self.source))), "")
            at = (error.offset or 1) - 1
            raise self._error(at, at, f"not understood ({error.msg}). {hint}") from None
        except (RecursionError, MemoryError, ValueError) as error:
            raise self._error(0, 0, f"not understood ({error or type(error).__name__}).") from None

    def _mask(self) -> str:
        """The source as Python understands it, character for character.

        Python has no infix ``~``; matrix multiplication, which binds tighter than comparisons, stands in for it. Texts are
        taken as they stand (a backslash belongs to the regular expression), so backslashes are hidden from Python.
        """
        characters, last = list(self.source), tokenize.NEWLINE
        try:
            for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
                (_, start), (_, end) = token.start, token.end
                if token.string == "@":
                    raise self._error(start, end, "not understood: there is no '@'.")
                if token.string == "~":
                    characters[start] = "@"
                if token.type == tokenize.STRING:
                    if last == tokenize.STRING:
                        raise self._error(start, end, "two texts in a row: a comma is missing.")
                    if token.string[0] not in "\"'" or token.string.startswith(('"""', "'''")):
                        raise self._error(start, end, "write texts in plain quotes, \"...\" or '...'.")
                    characters[start:end] = re.sub(r"\\.", "__", token.string)
                last = token.type
        except tokenize.TokenError:
            pass  # something is not closed: the parser says it better
        return "".join(characters)

    def _error(self, start: int, end: int, problem: str) -> ConfigError:
        piece = self.source[start:end] or self.source[start : start + 12]
        place = f"at character {start + self.shift + 1}" + (f" ({piece!r})" if piece else "")
        return ConfigError(f"Filter {self.source!r}, {place}: {problem}".strip())

    def _span(self, node: ast.expr) -> tuple[int, int]:
        raw = self.masked.encode()  # ast counts bytes
        start, end = (len(raw[:at].decode()) for at in (node.col_offset, node.end_col_offset or len(raw)))
        return start, end

    def _at(self, node: ast.expr, problem: str) -> ConfigError:
        return self._error(*self._span(node), problem)

    def _text(self, node: ast.expr) -> str:
        """A text between its quotes, as it stands; only a quote after a backslash loses the backslash."""
        start, end = self._span(node)
        return re.sub(r"\\(.)", lambda m: m[1] if m[1] in "\"'" else m[0], self.source[start + 1 : end - 1])

    def _truth(self, node: ast.expr) -> ex.Node:
        if isinstance(node, ast.BoolOp):
            parts = tuple(self._truth(value) for value in node.values)
            return ex.All(parts) if isinstance(node.op, ast.And) else ex.Any_(parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ex.Not(self._truth(node.operand))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            return self._match(node)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            each = tuple(self._comparison(node, a, op, b) for a, op, b in zip(sides, node.ops, sides[1:], strict=False))
            return each[0] if len(each) == 1 else ex.All(each)
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            raise self._at(
                node, f"a column alone is no predicate. Compare it, for example: {ast.unparse(node)} == true."
            )
        raise self._at(
            node, "only comparisons (== != < <= > >= in ~ is null), and, or, not and brackets can stand here."
        )

    def _comparison(self, whole: ast.Compare, left: ast.expr, op: ast.cmpop, right: ast.expr) -> ex.Node:
        if isinstance(op, ast.In | ast.NotIn):
            node: ex.Node = ex.Member(self._column(left), self._list(right))
            return ex.Not(node) if isinstance(op, ast.NotIn) else node
        if isinstance(op, ast.Is | ast.IsNot):
            if not _is_null(right):
                raise self._at(right, "'is' goes with null alone: 'x is null', 'x is not null'. Equality is '=='.")
            node = ex.IsNull(self._column(left))
            return ex.Not(node) if isinstance(op, ast.IsNot) else node
        for side in (left, right):
            if _is_null(side):
                raise self._at(side, "nothing equals null: write 'is null' or 'is not null'.")
        a, b, symbol = self._operand(left), self._operand(right), _COMPARISONS[type(op)]
        if any(isinstance(x, ex.Literal) and x.kind == ex.TRUTH for x in (a, b)) and symbol not in ("==", "!="):
            raise self._at(whole, "true and false have no order: use == or !=.")
        try:
            return ex.Compare.of(a, symbol, b)
        except ValueError as error:
            raise self._at(
                whole, f"{error}: one side must be a column (texts need quotes, columns must not have any)."
            ) from None

    def _match(self, node: ast.BinOp) -> ex.Node:
        pattern = self._operand(node.right)
        if not isinstance(pattern, ex.Literal) or not isinstance(pattern.value, str):
            raise self._at(node.right, "after ~ stands a regular expression in quotes.")
        try:
            return ex.Match(self._column(node.left), re.compile(pattern.value))
        except re.error as error:
            raise self._at(node.right, f"not a regular expression: {error}.") from None

    def _list(self, node: ast.expr) -> tuple[ex.Literal, ...]:
        if not isinstance(node, ast.List | ast.Tuple | ast.Set) or not node.elts:
            raise self._at(
                node, 'after \'in\' stands a list of values, such as ["a", "b"]. (To search in a text, use ~.)'
            )
        found: list[ex.Literal] = []
        for element in node.elts:
            value = self._operand(element)
            if not isinstance(value, ex.Literal):
                raise self._at(element, "a list holds numbers or texts in quotes.")
            if found and value.kind != found[0].kind:
                raise self._at(
                    element, f"a list holds values of one kind; this is {value.kind}, the first is {found[0].kind}."
                )
            found.append(value)
        return tuple(found)

    def _column(self, node: ast.expr) -> ex.Column:
        found = self._operand(node)
        if isinstance(found, ex.Literal):
            raise self._at(node, "a column's name must stand here, without quotes.")
        return found

    def _operand(self, node: ast.expr) -> ex.Column | ex.Literal:
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
            if isinstance(node.value, int) and abs(node.value) >= 1 << 63:
                raise self._at(node, "numbers must fit 64 bits.")
            return ex.Literal(self._text(node) if isinstance(node.value, str) else node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            inner = self._operand(node.operand)
            if isinstance(inner, ex.Literal) and inner.kind == ex.NUMBER:
                return ex.Literal(-inner.value if isinstance(node.op, ast.USub) else inner.value)  # type: ignore[operator]
        if isinstance(node, ast.Name) and node.id in _CONSTANTS:
            return ex.Literal(_CONSTANTS[node.id])
        path = self._path(node)
        if path is None or _is_null(node):
            raise self._at(node, "only columns, numbers, texts in quotes, true and false can be compared.")
        if path[0] == OWN and len(path) > 1:
            return ex.Column(path[1:])
        return ex.BuiltIn(path) if len(path) == 1 and path[0] in ex.BUILTINS else ex.Column(path)

    def _path(self, node: ast.expr) -> tuple[str, ...] | None:
        if isinstance(node, ast.Name):
            return (node.id,)
        if isinstance(node, ast.Attribute):
            key, inner = node.attr, node.value
        elif (
            isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Constant)
            and isinstance(node.slice.value, str)
        ):
            key, inner = self._text(node.slice), node.value
        else:
            return None
        before = self._path(inner)
        return None if before is None else (*before, key)


def _is_null(node: ast.expr) -> bool:
    named = isinstance(node, ast.Name) and node.id in ("null", "NULL")
    return named or (isinstance(node, ast.Constant) and node.value is None)


def _without_strings(text: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"", "", text)
