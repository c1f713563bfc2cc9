"""Mutants of a module: small changes of its source, made by the operators of cosmic-ray."""

import ast
import difflib
import random
from typing import NamedTuple

from cosmic_ray import mutating, plugins
from cosmic_ray.ast import ast_nodes, get_ast

SKIPPED = ("core/VariableReplacer", "core/VariableInserter")  # these need names to be given


class Mutant(NamedTuple):
  """A changed source, and what was changed as lines of a diff."""

  source: str
  change: str


def sample(source: str, count: int, seed: int) -> list[Mutant]:
  """`count` mutants, or all there are: places are drawn without replacement, then one operator for each place.

  Annotations are left alone, since a change there fails at import, or nowhere.
  """
  annotations = _annotations(source)
  places: dict[tuple[int, int], list[tuple[str, int]]] = {}
  for name in sorted(set(plugins.operator_names()) - set(SKIPPED)):
    operator, occurrence = plugins.get_operator(name)(), 0
    for node in ast_nodes(get_ast(source)):
      for start, end in operator.mutation_positions(node):
        if not any(a <= start and end <= b for a, b in annotations):
          places.setdefault(start, []).append((name, occurrence))
        occurrence += 1
  choose = random.Random(seed)
  found = []
  for place in choose.sample(sorted(places), len(places)):
    name, occurrence = choose.choice(places[place])
    mutant = mutating.mutate_code(source, plugins.get_operator(name)(), occurrence)
    if mutant and len(found) < count and _compiles(mutant):
      found.append(Mutant(mutant, changed_lines(source, mutant)))
  return found


def changed_lines(old: str, new: str) -> str:
  """The lines that differ, with `-` and `+` before them."""
  lines = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")
  return "\n".join(line for line in lines if not line.startswith(("---", "+++")))


def _annotations(source: str):
  """Start and end of each annotation, as parso counts: lines from 1, columns from 0."""
  found = []
  for node in ast.walk(ast.parse(source)):
    for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
      if part is not None:
        found.append(((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)))
  return found


def _compiles(source: str) -> bool:
  try:
    compile(source, "mutant", "exec")
  except SyntaxError:
    return False
  return True
