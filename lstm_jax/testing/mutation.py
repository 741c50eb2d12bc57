"""Planted errors: a module whose backward has one term scaled.

A check of gradients is worth what it catches. `plant(lstm, "dc")` is the module
`lstm` with one line of its backward changed, from

  dc = dc_sum * tape.c_by_c      to      dc = 1.01 * (dc_sum * tape.c_by_c)

Nothing in the cell knows of this: the module's own source is parsed, the term
scaled, and the result executed as a module of its own. The forward is the same,
so a check of gradients must fail, and say where.

What a cell's forward keeps for its backward counts as part of the backward.

A *term* is a name that a backward assigns (`dc`), or one part of what it
assigns: a summand (`dc_sum[0]`, `dc_sum[1]`), or one of the arrays that it
concatenates (`da[0]` is the input gate's).
"""

import ast
import inspect
from types import ModuleType

import jax

# Where a backward begins: a cell's two halves, or else a function's own rule.
CELL_ROOTS = "_derivatives", "recur_backward", "parameter_gradients"
OTHER_ROOTS = "backward", "affine_backward"


def terms(module: ModuleType) -> tuple[str, ...]:
  """Return the names of every term in the module's backward, in order."""
  names: dict[str, None] = {}
  for assignment in _assignments(ast.parse(inspect.getsource(module))):
    for name in filter(None, _targets(assignment)):
      names[name] = None
      parts = _parts(assignment.value)
      if len(parts) > 1:
        names.update({f"{name}[{k}]": None for k in range(len(parts))})
  return tuple(names)


def plant(module: ModuleType, term: str, factor: float = 1.01) -> ModuleType:
  """Return a copy of the module in which one term of its backward is scaled.

  Args:
    module: a cell, or another module with a backward (`OTHER_ROOTS`).
    term: one of `terms(module)`.
    factor: what the term is multiplied by.

  Raises:
    ValueError: the module has no such term.
  """
  known = terms(module)
  if term not in known:
    raise ValueError(
      f"{module.__name__} has no term {term!r}; it has {', '.join(known)}"
    )
  tree = ast.parse(inspect.getsource(module))
  name, _, part = term.rstrip("]").partition("[")
  for assignment in _assignments(tree):
    if name not in _targets(assignment):
      continue
    if part:
      parts = _parts(assignment.value)
      if len(parts) > 1:  # not a call that returns the whole
        assignment.value = _Scale(parts[int(part)]).visit(assignment.value)
    elif isinstance(assignment.targets[0], ast.Name):
      assignment.value = _call(assignment.value)
    else:
      index = _targets(assignment).index(name)
      assignment.value = _call(assignment.value, index)

  def scale(value, index=None):
    if index is not None:
      value = list(value)
      value[index] = scale(value[index])
      return value
    return jax.tree.map(lambda x: (factor * x).astype(x.dtype), value)

  planted = ModuleType(module.__name__, module.__doc__)
  planted.__dict__["__scale__"] = scale
  code = compile(ast.fix_missing_locations(tree), f"<{term} planted>", "exec")
  exec(code, planted.__dict__)
  return planted


class _Scale(ast.NodeTransformer):
  def __init__(self, node):
    self.node = node

  def visit(self, node):
    return _call(node) if node is self.node else self.generic_visit(node)


def _call(value, index=None):
  arguments = [value] if index is None else [value, ast.Constant(index)]
  function = ast.Name("__scale__", ast.Load())
  return ast.Call(function, arguments, [])


def _assignments(tree):
  """Return the assignments of every function that a backward reaches."""
  functions: dict[str, list] = {}  # several wrappers have a recur_backward
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      functions.setdefault(node.name, []).append(node)
  queue = [name for name in CELL_ROOTS if name in functions]
  queue = queue or [name for name in OTHER_ROOTS if name in functions]
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
  return [
    node
    for same_name in reached.values()
    for function in same_name
    for node in ast.walk(function)
    if isinstance(node, ast.Assign) and any(_targets(node))
  ]


def _targets(assignment):
  """Return the names assigned, "" for what is not a cotangent's (d…)."""
  if isinstance(assignment.value, ast.Name):
    return []
  (target,) = assignment.targets
  elements = target.elts if isinstance(target, ast.Tuple) else [target]
  names = [ast.unparse(element) for element in elements]
  return [name if name.startswith("d") else "" for name in names]


def _parts(node):
  """Return the summands of an expression, or else what it concatenates."""
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    return [*_parts(node.left), *_parts(node.right)]
  for call in ast.walk(node):
    if (
      isinstance(call, ast.Call)
      and ast.unparse(call.func) == "jnp.concatenate"
      and isinstance(call.args[0], ast.List)
    ):
      return call.args[0].elts
  return [node]
