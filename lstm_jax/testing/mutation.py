"""Mutation testing of gradients: scale one term of a module's backward.

A gradient check is only as good as the errors that it catches. `plant(lstm,
"dc")` returns a copy of the module `lstm` with one line of its backward
changed, from

  dc = dc_sum * f      to      dc = 1.01 * (dc_sum * f)

The module's source is parsed, the term is scaled, and the result is executed as
a new module; the cell itself needs no support for this. A gradient check of the
copy must fail, unless the term is 0 for its inputs.

The terms of a `MadeCell`, such as `rnn.with_activation(RELU)`, are those of its
module `rnn`. `plant` copies this module, and calls `with_activation` of the
copy.

A *term* is what a backward assigns to a variable whose name begins with d
(`dc`), or one part of it: a summand or a subtrahend of the whole expression
(`dc_sum[0]`, `dc_sum[1]`), or one of the arrays that it concatenates (`da[0]`
is that of the input gate). If a name is assigned several times, each assignment
is a term: `du#1`, `du#2`. An assignment that only gives a variable another
name, such as `da = x`, is not a term. A backward consists of the functions of
`ROOTS` and those of the same module that they call by name: every name there
that begins with d is taken for a gradient, except in a tuple within a tuple.
(So a cell with a `forward` of its own must not begin a name there with d: that
variable would be scaled too, and change the outputs.)
"""

import ast
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import jax

from lstm_jax.cells.cell import Cell
from lstm_jax.cells.made import MadeCell

ROOTS = (
  "_local_gradients",  # of a cell that computes them in its forward
  "recur_backward",
  "parameter_gradients",
  "forward",  # of a GPU kernel's time step, which computes local gradients
  "backward",
  "affine_backward",
)


def terms(module: ModuleType | Cell) -> tuple[str, ...]:
  """Return the terms of a module's backward, in the order of their lines.

  Raises:
    TypeError: it is neither a module nor a `MadeCell`, is built into Python, or
      is a copy from `plant`.
    OSError: there is no source of the module.
  """
  return _terms(_named(_parse(_module(module))))


def plant(module: ModuleType | Cell, term: str, factor: float = 1.01) -> Any:
  """Return a copy of the module in which one term of its backward is scaled.

  Args:
    module: a cell, or another module with one of the functions `ROOTS`.
    term: one of `terms(module)`.
    factor: the factor of the term.

  Raises:
    ValueError: the module has no such term.
    TypeError, OSError: as in `terms`.
  """
  if isinstance(module, MadeCell):
    planted = plant(_module(module), term, factor)
    return getattr(planted, module.maker.__name__)(*module.arguments)
  module = _module(module)
  tree = _parse(module)
  named = [*_named(tree)]
  known = _terms(named)
  if term not in known:
    raise ValueError(
      f"{module.__name__} has no term {term!r}; it has "
      f"{', '.join(known) or 'none'}"
    )
  whole, _, part = term.rstrip("]").partition("[")
  ((name, assignment),) = (
    (name, assignment) for found, name, assignment in named if found == whole
  )
  if part:
    old: Any = _parts(assignment.value)[int(part)]
    new: Any = _call(old)
  else:  # d = …; d = __scale__(d)
    old = assignment
    scaled = _call(ast.Name(name, ast.Load()))
    new = [old, ast.Assign([ast.Name(name, ast.Store())], scaled)]
  tree = _Replace(old, new).visit(tree)

  def scale(value):
    return jax.tree.map(scale_leaf, value)

  def scale_leaf(x):
    if isinstance(x, int | float):  # not an array, such as the 1 of 1 − p
      return factor * x
    return (factor * x).astype(x.dtype)

  # The copy shares the module's types, so that it takes the same params.
  types = {
    name for name, value in vars(module).items() if inspect.isclass(value)
  }
  tree.body = [node for node in tree.body if not _makes_type(node, types)]
  # A copy named __main__ would run the script, which may plant again.
  copied = "planted" if module.__name__ == "__main__" else module.__name__
  planted = ModuleType(copied, module.__doc__)
  # Relative imports need __spec__; code that reads files beside it, __file__.
  planted.__spec__, planted.__file__ = module.__spec__, module.__file__
  planted.__dict__.update({name: getattr(module, name) for name in types})
  planted.__dict__["__scale__"] = scale
  code = compile(ast.fix_missing_locations(tree), f"<{term} planted>", "exec")
  exec(code, planted.__dict__)
  return planted


def _module(cell: ModuleType | Cell) -> ModuleType:
  """Return the module that has the backward of a cell."""
  if isinstance(cell, MadeCell):
    if cell.maker.__globals__ is not vars(cell.module):
      raise TypeError(f"{cell} must not be a copy from plant")
    return cell.module
  if not isinstance(cell, ModuleType):
    raise TypeError(
      f"a cell must be a module or a MadeCell, got {type(cell).__name__}"
    )
  if "__scale__" in vars(cell):
    raise TypeError(f"{cell.__name__} must not be a copy from plant")
  return cell


def _makes_type(statement: ast.stmt, types: set[str]) -> bool:
  """Return whether a statement makes one of these types, or registers one."""
  names: list[ast.expr] = []
  if isinstance(statement, ast.ClassDef):
    return statement.name in types
  if isinstance(statement, ast.Assign):  # P = namedtuple("P", …)
    names = statement.targets
  elif isinstance(statement, ast.Expr):
    call = statement.value
    # JAX refuses a second registration.
    if isinstance(call, ast.Call) and "register_" in ast.unparse(call.func):
      names = [*call.args[:1], *(k.value for k in call.keywords)]
  return any(isinstance(x, ast.Name) and x.id in types for x in names)


def _parse(module: ModuleType) -> ast.Module:
  """Return a module's syntax tree, with assignments as `name = value`."""
  return _Plain().visit(ast.parse(inspect.getsource(module)))


class _Plain(ast.NodeTransformer):
  """Writes `d: Array = x` as `d = x`, and `d += x` as `d = d + x`."""

  def visit_AnnAssign(self, node):
    if node.value is None:
      return node
    return ast.copy_location(ast.Assign([node.target], node.value), node)

  def visit_AugAssign(self, node):
    if not isinstance(node.target, ast.Name):
      return node
    before = ast.parse(ast.unparse(node.target), mode="eval").body
    value = ast.BinOp(before, node.op, node.value)
    return ast.copy_location(ast.Assign([node.target], value), node)

  def visit_ClassDef(self, node):
    return node  # the annotations of its fields stay


class _Replace(ast.NodeTransformer):
  """Writes `new`, a node or a list of statements, in place of `old`."""

  def __init__(self, old, new):
    self.old, self.new = old, new

  def visit(self, node):
    return self.new if node is self.old else self.generic_visit(node)


def _call(value):
  """Return a call that scales a value."""
  return ast.Call(ast.Name("__scale__", ast.Load()), [value], [])


def _terms(named: Iterable[tuple[str, str, ast.Assign]]) -> tuple[str, ...]:
  """Return the terms of what `_named` yields, and the parts of each."""
  names = []
  for term, _, assignment in named:
    parts = len(_parts(assignment.value))
    names += [term, *(f"{term}[{k}]" for k in range(parts) if parts > 1)]
  return tuple(names)


def _named(tree: ast.Module) -> Iterator[tuple[str, str, ast.Assign]]:
  """Yield (term, variable, assignment), such as ("du#1", "du", …); no parts."""
  assignments = sorted(_assignments(tree), key=lambda node: node.lineno)
  found = [
    (name, assignment)
    for assignment in assignments
    for name in filter(None, _targets(assignment))
  ]
  total, seen = Counter(name for name, _ in found), Counter[str]()
  for name, assignment in found:
    seen[name] += 1
    term = name if total[name] == 1 else f"{name}#{seen[name]}"
    yield term, name, assignment


def _assignments(tree):
  """Return the assignments of terms in `ROOTS` and the functions they call."""
  # Lists, because each wrapper of `sequence.wrappers` has its recur_backward.
  functions: dict[str, list] = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      functions.setdefault(node.name, []).append(node)
  queue = [name for name in ROOTS if name in functions]
  reached: dict[str, list] = {}
  while queue:
    name = queue.pop(0)
    if name not in reached:
      reached[name] = functions[name]
      called = (
        node.func.id
        for function in functions[name]
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
      )
      queue += [name for name in called if name in functions]
  found = {  # each once: a function may lie within another
    id(node): node
    for same_name in reached.values()
    for function in same_name
    for node in ast.walk(function)
    if isinstance(node, ast.Assign) and any(_targets(node))
  }
  return [*found.values()]


def _targets(assignment):
  """Return the variables assigned, "" for those that do not begin with d.

  The list is empty if the value is only another variable.
  """
  if isinstance(assignment.value, ast.Name):
    return []
  names = [
    _variable(variable)
    for target in assignment.targets  # several in d = e = …
    for variable in getattr(target, "elts", [target])  # in d, e = …
  ]
  return [name if name.startswith("d") else "" for name in names]


def _variable(target):
  """Return the name of a target, or of a starred one; "" for dw["x"]."""
  if isinstance(target, ast.Starred):
    target = target.value
  return target.id if isinstance(target, ast.Name) else ""


def _parts(node):
  """Return what an expression adds, subtracts or concatenates.

  An expression that does none of these is its own only part.
  """
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
    return [*_parts(node.left), *_parts(node.right)]
  for call in ast.walk(node):
    if not isinstance(call, ast.Call):
      continue
    name = ast.unparse(call.func).rpartition(".")[2]
    named = [k.value for k in call.keywords if k.arg == "arrays"]
    arrays = next(iter([*call.args, *named]), None)
    if name == "concatenate" and isinstance(arrays, ast.Tuple | ast.List):
      return [x.value if isinstance(x, ast.Starred) else x for x in arrays.elts]
  return [node]
