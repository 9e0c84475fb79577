"""Rewrite a parsed chat template so that it counts what it does, where Jinja has no hook for that."""

from __future__ import annotations

from typing import cast

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

# Filters of the environment, under names that no template can write.
STEPS, WRITTEN, READ, FOUND_IN, MADE, TEXTS = "(steps)", "(written)", "(read)", "(found in)", "(made)", "(texts)"
_PARTS = 32  # parts of a loop's body, or characters of its text, that take as long as one step
MACRO_STEPS = 20  # what a call of a macro counts, as it takes as long


class Counter(NodeTransformer):
    """Makes loops and macros count their turns; output, slices, `~` and comparisons what they read and make."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.test:  # an item that is passed over takes a turn, too
            node.test = nodes.And(_filter(nodes.Const(1), STEPS), node.test).set_lineno(node.lineno)
        return self._count(node, 1)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._count(node, MACRO_STEPS)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._count(node, MACRO_STEPS)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        return self._count(node, MACRO_STEPS)

    def _count(self, node: nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block, steps: int) -> nodes.Node:
        steps += sum(map(_weight, node.body)) // _PARTS
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter(nodes.Const(steps), STEPS)).set_lineno(node.lineno))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [child if _is_constant(child) else _filter(child, WRITTEN) for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), TEXTS)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, MADE) if isinstance(node.arg, nodes.Slice) else node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        """Count a dict's key, which may be a tuple of tuples."""
        self.generic_visit(node)
        node.key = _read(node.key)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Count both sides; to compare with a constant takes no longer than that is."""
        self.generic_visit(node)
        if not all(map(_is_constant, (operand.expr for operand in node.ops))):
            node.expr = _read(node.expr)
            for operand in node.ops:
                operand.expr = _read(operand.expr, FOUND_IN if operand.op in ("in", "notin") else READ)
        return node


def _filter(node: nodes.Expr, name: str) -> nodes.Expr:
    """Return a filter of this name; the compiler calls it without the sandbox's checks."""
    return cast(nodes.Expr, nodes.Filter(node, name, [], [], None, None).set_lineno(node.lineno))


def _read(node: nodes.Expr, name: str = READ) -> nodes.Expr:
    return node if _is_constant(node) else _filter(node, name)


def _is_constant(node: nodes.Node) -> bool:
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return all(map(_is_constant, node.items))
    return isinstance(node, (nodes.Const, nodes.TemplateData))


def _weight(node: nodes.Node) -> int:
    """Return the parts of a node, and the characters of its texts."""
    own = 1
    if isinstance(node, nodes.TemplateData):
        own = len(node.data)
    elif isinstance(node, nodes.Const) and isinstance(node.value, str):
        own = 1 + len(node.value)
    return own + sum(map(_weight, node.iter_child_nodes()))
