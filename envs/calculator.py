"""Arithmetic for policies: a syntax tree is walked, Python itself evaluates nothing."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from instructrec.envs.tool_calls import parse_expression

Number = int | float

_MAX_CHARS = 200
_MAX_BITS = 512  # of whole numbers; what would grow beyond is refused before it is computed
_SIGNS = str.maketrans({"×": "*", "÷": "/", "\u2212": "-", "^": "**"})
_TWO_SIDED: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "max": max,
    "min": min,
    "round": round,
    "sqrt": math.sqrt,
}


def calculator(expression: str) -> str:
    """Computes an arithmetic expression.

    Args:
        expression: Numbers with + - * / // % ** and parentheses, abs, max, min, round and sqrt.

    Returns:
        The value, of twelve digits where it is no whole number.

    Raises:
        ValueError: It is no such expression, has no value, or is too large.
    """
    if len(expression) > _MAX_CHARS:
        raise ValueError(f"the expression is longer than {_MAX_CHARS} characters")
    tree = parse_expression(expression.strip().translate(_SIGNS))
    if tree is None:
        raise ValueError("this is no arithmetic expression")
    try:
        value = _value(tree)
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except OverflowError:
        raise ValueError("the value is too large") from None
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def _value(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant):
        return _checked(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _TWO_SIDED:
        left, right = _value(node.left), _value(node.right)
        _refuse_growth(node.op, left, right)
        return _checked(_TWO_SIDED[type(node.op)](left, right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _applied(node.func.id, [_value(argument) for argument in node.args])
    raise ValueError("this is no arithmetic expression")


def _applied(name: str, arguments: list[Number]) -> Number:
    if name not in _FUNCTIONS:
        raise ValueError(f"there is no function {name!r}, only {', '.join(_FUNCTIONS)}")
    if name == "round" and len(arguments) == 2 and not abs(arguments[1]) <= 20:
        raise ValueError("round takes at most 20 digits")
    try:
        return _checked(_FUNCTIONS[name](*arguments))
    except TypeError:
        raise ValueError(f"these are no arguments for {name}") from None


def _refuse_growth(op: ast.operator, left: Number, right: Number) -> None:
    """Raises ValueError for a product or power of whole numbers that has too many bits at least."""
    if not (isinstance(left, int) and isinstance(right, int)):
        return
    bits = 0
    if isinstance(op, ast.Mult):
        bits = left.bit_length() + right.bit_length() - 2
    elif isinstance(op, ast.Pow):
        bits = (left.bit_length() - 1) * right
    if bits > _MAX_BITS:
        raise ValueError("the value is too large")


def _checked(value: Any) -> Number:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("this is no real number")
    if isinstance(value, int):
        if value.bit_length() > _MAX_BITS:
            raise ValueError("the value is too large")
    elif not math.isfinite(value):
        raise ValueError("the value is not finite")
    return value
