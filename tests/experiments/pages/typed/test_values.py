"""A text typed into the page of `experiments.explore`, in a browser.

Its states, gates, predictions and gradients are those of the library, in
float64, with the 8-bit weights of the page. The biases and gains have noise.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pages
from experiments.analysis.gradient_flow import gradient_paths
from experiments.analysis.states import signals, trace_layers
from experiments.pages import packed_model
from experiments.trainer.trained import load
from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.explored import PageData, exact_params
from tests.experiments.pages.typed.typing_texts import (
  GRADIENTS,
  WINDOW,
  page_of,
  type_text,
)

pytestmark = [pytest.mark.programs, browser.NEEDED]


# The vocabulary of the poems lacks §.
TYPED = "Shall I compare§ thee\nto a lovely day" + " more lovely" * 7


def computed(run, text):
  """Return what the library computes with the page's weights, in float64."""
  trained = load(run)
  params = jax.tree.map(jnp.asarray, exact_params(trained))
  cell = trained.config.model.cell
  tokens = trained.tokenizer.encode(text)
  layers, logits = trace_layers(cell, params, jnp.asarray(tokens))
  assert logits.dtype == jnp.float64
  paths = gradient_paths(cell, params, layers, tokens, WINDOW)
  return cell, tokens, layers, jax.nn.softmax(logits), paths


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", packed_model.CELLS)
def test_a_typed_text_is_read_as_the_library_reads_it(chromium, make_run, name):
  run = make_run(name)
  cell, tokens, layers, p, paths = computed(run, TYPED.replace("§", ""))
  last = len(tokens) - 1
  chromium.open(page_of(run))
  type_text(chromium, TYPED)
  assert chromium.run("return [...tokens]") == tokens.tolist()
  assert chromium.run("return pieces.join('')") == TYPED.replace("§", "")
  assert f"character {last + 1} of {last + 1}." in text_of(chromium, "status")

  # Every signal, and its levels, to half a level.
  page_data = PageData(run / "explore.html")
  for number, layer in enumerate(layers):
    for signal, values in signals(cell, layer).items():
      values = np.asarray(values).T
      scale, is_signed, levels, exact = chromium.run(
        """
        const [layer, name] = args, { cell, hiddenSize: H } = text.model;
        const s = await text.signalOf(layer, name);
        const gate = cell.gates.indexOf(name) * H;
        const exact = text.tokens.map((_, t) => [...(
          cell.state.includes(name) ? text.stateAt(t).layers[layer][name]
          : text.gatesAt(t, layer).subarray(gate, gate + H))]);
        return [s.scale, s.signed, [...s.levels], exact];
        """,
        number,
        signal,
      )
      assert np.abs(np.array(exact).T - values).max() < 1e-11
      levels = np.array(levels).reshape(values.shape).astype(float)
      shown, half = levels / 255, 0.5 / 255
      if is_signed:
        own = page_data.scale(number, signal)
        assert (
          np.abs(scale - np.maximum(own, np.abs(values).max(1))).max() < 1e-11
        )
        half = 0.5 / 127 * np.array(scale)[:, None]
        shown = (levels - 128) * 2 * half
      assert (np.abs(shown - values) < half + 1e-12).all(), signal
      assert np.ptp(values) > 0.01

  # The nats of all tokens, the predictions, and the score of the text.
  found_nats, top = chromium.run("return [text.nats, text.top]")
  expected = -np.log(p[np.arange(last), tokens[1:]])
  assert np.abs(np.array(found_nats) - expected).max() < 1e-11
  for t in (0, 7, last):
    likeliest = np.argsort(-p[t], kind="stable")[:10]
    assert [token for token, _ in top[t]] == likeliest.tolist()
    found = np.array([q for _, q in top[t]])
    assert np.abs(found - p[t][likeliest]).max() < 1e-11
  assert text_of(chromium, "score") == (
    f"{last + 1} characters; {expected.mean():.3f} nats per character, from "
    "the second on; 1 not in the vocabulary, left out."
  )

  # The gradients, at cursors with and without a full window before them.
  for at in (0, 30, last - 1, last):
    chromium.run(GRADIENTS, at)
    for number, path in enumerate(paths):
      found = chromium.run(
        "const paths = await text.pathsOf(args[0]);"
        "return Object.fromEntries(paths.map((path) => [path.name,"
        " Array.from({ length: data.window }, (_, k) => path.norm(args[1], k))"
        "]));",
        number,
        at,
      )
      assert set(found) == set(path._asdict())
      for field, norms in path._asdict().items():
        shown, norms = np.array(found[field]), np.asarray(norms[at])
        inside = norms > 0
        assert (np.abs(shown - norms)[inside] < 1e-9 * norms[inside]).all()
        assert (shown[~inside] == 0).all()
  assert (paths[0].h[last - 1] > 0).all()

  # The gradients in the table beside the text, once they are computed.
  for number in (0, 1):
    chromium.run(
      "$('layer').value = args[0];"
      "$('layer').dispatchEvent(new Event('change'));",
      number,
    )
    chromium.settle()
    chromium.run(GRADIENTS, last - 1)
    rows = chromium.run(
      "return [...document.querySelectorAll('#norms tr')].map((row) =>"
      "[...row.children].slice(2).map((cell) => cell.textContent))"
    )
    norms = [np.asarray(n)[last - 1] for n in paths[number]]
    for back, row in zip((0, 1, 2, 4, 8, 16, 32, 64), rows, strict=True):
      for shown, norm in zip(row, norms, strict=True):
        # Shown with two digits.
        value = 0 if shown == "–" else float(shown.replace("−", "-"))
        assert abs(value - norm[back]) <= 0.051 * 10 ** np.floor(
          np.log10(norm[back] or 1)
        )


# What a line of backward.js assigns to an array or a term, or returns.
RESULT = re.compile(
  r"^\s*(?:(?:for \(.*?\) |const (?=(?:s|dn|da) =))?\w+(?:\[.+?\])? [-+*]?="
  r"|.*\(y\) =>) (.+?)\)?[,;]$"
)
# The first line of a function or of a cell, with its name.
BLOCK = re.compile(r"^(?:function|  )(?: )?(\w+)(?:\(.*\{|: (?:\{|plain.*))$")
USERS = {  # the cells that call each of the functions above the cells
  "normaliseBackward": ("layernorm_lstm",),
  "gatesBackward": ("lstm", "peephole_lstm", "layernorm_lstm"),
  "plainRnnBackward": ("rnn", "relu_rnn"),
}


def planted(name):
  """Return (line, backward.js with an error there) of each line of a cell.

  The lines are those that assign or return a result while the cell `name` runs.
  """
  source = pages.explore.TEMPLATE.with_name("backward.js").read_text("utf-8")
  lines = source[: source.index("const norm =")].splitlines()
  block, variants = "", []
  for number, line in enumerate(lines):
    if start := BLOCK.match(line):
      block = start[1]
    runs = name == block or name in USERS.get(block, ())
    result = RESULT.match(line)
    if runs and result and result[1] != "0":  # 1.01 times 0 is no error
      before, after = line[: result.start(1)], line[result.end(1) :]
      wrong = f"{before}1.01 * ({result[1]}){after}"
      # Without its first line, which makes the code strict: the script is.
      code = "\n".join([*lines[1:number], wrong, *lines[number + 1 :]])
      variants.append((line.strip(), code))
  return variants


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", packed_model.CELLS)
def test_an_error_planted_in_a_backward_changes_the_gradient(
  chromium, make_run, name, tmp_path
):
  page = page_of(make_run(name)).read_text("utf-8")
  variants = planted(name)
  code = "".join(f"{{{code}\nWRONG.push(BACKWARD);}}\n" for _, code in variants)
  end = page.rindex("</body>")
  (tmp_path / "page.html").write_text(
    f"{page[:end]}<script>'use strict'; const WRONG = [];\n"
    f"{code}</script>{page[end:]}"
  )
  chromium.open(tmp_path / "page.html")
  type_text(chromium, TYPED.replace("§", ""))
  # The norms for the prediction at token 40, over nine states, without an error
  # and with each of them.
  own, *found = chromium.run("""
    const { cell } = data.model;
    return [BACKWARD, ...WRONG].map((backward) => {
      const path = new GradientPath(
        text.model, cell, text, 40, text.tokens[41], 9);
      path.backward = backward[cell];
      while (path.advance());
      return path.norms.map((fields) => Object.values(fields).map(
        (norms) => [...norms.slice(0, 9)]));
    });
  """)
  assert len(variants) >= (2 if name in USERS["plainRnnBackward"] else 4)
  for (line, _), norms in zip(variants, found, strict=True):
    # Without an error, the gradient is that of the library to 1e-9.
    assert np.abs(np.subtract(norms, own)).max() > 1e-6, line
