"""The collectives of programs that no CPU compiles: HLO, written by hand."""

from lstm_jax.training import find_collectives

# One collective is two calls below the body of a loop; another is outside.
INNER = """
%inner (p: f32[2]) -> f32[2] {
  ROOT %g = f32[2]{0} all-reduce(%p), to_apply=%add
}
%middle (p: f32[2]) -> f32[2] {
  ROOT %k = f32[2]{0} call(%p), to_apply=%inner
}
%body (p: f32[2]) -> f32[2] {
  ROOT %c = f32[2]{0} call(%p), to_apply=%middle
}
%condition (p: f32[2]) -> pred[] {
  ROOT %t = pred[] constant(false)
}
%outside (p: f32[2]) -> f32[2] {
  ROOT %o = f32[2]{0} all-reduce(%p), to_apply=%add
}
ENTRY %main (p: f32[2]) -> f32[2] {
  %w = f32[2]{0} while(%p), condition=%condition, body=%body
  ROOT %r = f32[2]{0} call(%w), to_apply=%outside
}
"""


def found(instruction):
  """Return the kind and the bytes of the only collective of a program."""
  text = f"ENTRY %main (p: f32[2]) -> f32[2] {{\n  {instruction}\n}}"
  ((kind, size, looped),) = find_collectives(text)
  assert not looped
  return kind, size


def test_what_a_loop_calls_is_inside_the_loop_at_any_depth():
  assert [c.looped for c in find_collectives(INNER)] == [True, False]


def test_the_size_of_an_asynchronous_collective_is_that_of_its_result():
  # An all-gather-start returns (operands, results).
  start = "%s = (f32[2,3]{1,0}, f32[4,3]{1,0}) all-gather-start(%p)"
  done = "%d = f32[4,3]{1,0} all-gather-done(%s)"
  assert found(f"{start}\n  {done}") == ("all-gather", 48)
  operands, results = "(f32[2]{0}, f32[3]{0})", "(f32[4]{0}, f32[6]{0})"
  start = f"%s = ({operands}, {results}) all-gather-start(%p, %q)"
  done = f"%d = {results} all-gather-done(%s)"
  assert found(f"{start}\n  {done}") == ("all-gather", 40)
  # An all-reduce-start returns its results alone.
  results = "(f32[2]{0}, bf16[3]{0})"
  start = f"%s = {results} all-reduce-start(%p, %q)"
  done = f"%d = {results} all-reduce-done(%s)"
  assert found(f"{start}\n  {done}") == ("all-reduce", 14)


def test_every_kind_of_collective_is_found():
  for kind in (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
  ):
    assert found(f"ROOT %r = f32[3]{{0}} {kind}(%p)") == (kind, 12)
