"""The benchmark's picture: whole steps side by side, and how cost grows."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

AXES = {"steps": "T", "batch": "B", "hidden": "H", "layers": "layers"}

COLORS = {
  "lstm_jax": "tab:blue",
  "autodiff": "tab:cyan",
  "flax linen": "tab:orange",
  "flax nnx": "tab:olive",
  "haiku": "tab:green",
  "equinox": "tab:purple",
  "keras": "tab:pink",
  "pytorch": "tab:red",
}


def draw(rows: list[dict[str, Any]], path: Path) -> bool:
  """Draw rows of the parts model and growth; return whether there were any."""
  models = [
    row
    for row in rows
    if row["part"] == "model"
    and (row["layers"], row["vocabulary"]) == (1, 65)
    and row["dtype"] == "float32"
  ]
  growing = [row for row in rows if row["part"].startswith("growth in ")]
  axes_names = list(dict.fromkeys(row["part"] for row in growing))
  if not models and not growing:
    return False
  count = bool(models) + len(axes_names)
  figure = Figure(figsize=(3.4 * count, 3.6), layout="constrained")
  panels = iter(figure.subplots(1, count, squeeze=False)[0])
  if models:
    panel = next(panels)
    ours = {r["hidden"]: r["median_ms"] for r in models if _is_ours(r)}
    for peer in dict.fromkeys(row["peer"] for row in models):
      points = [
        (row["hidden"], row["median_ms"] / ours[row["hidden"]])
        for row in models
        if row["peer"] == peer and row["hidden"] in ours
      ]
      panel.plot(*zip(*points, strict=True), label=peer, **_style(peer))
    panel.set_xscale("log", base=2)
    panel.set_xlabel("H")
    panel.set_title("Adam step, time / ours", fontsize=9)
    panel.set_ylim(0, None)
    panel.legend(fontsize=6, ncols=3, loc="lower center")
  for name in axes_names:
    panel = next(panels)
    axis = name.removeprefix("growth in ")
    chosen = [row for row in growing if row["part"] == name]
    for peer in dict.fromkeys(row["peer"] for row in chosen):
      points = [
        (row[axis], row["median_ms"]) for row in chosen if row["peer"] == peer
      ]
      panel.loglog(*zip(*points, strict=True), label=peer, **_style(peer))
    panel.set_xlabel(AXES[axis])
    panel.set_title(f"ms a step, growing {AXES[axis]}", fontsize=9)
    panel.legend(fontsize=6)
  figure.savefig(path, dpi=110)
  return True


def _is_ours(row: dict[str, Any]) -> bool:
  return row["peer"] == "lstm_jax"


def _style(peer: str) -> dict[str, Any]:
  """Return how a peer is drawn, the same in every panel."""
  if peer == "products alone":
    return {"color": "black", "linestyle": ":"}
  return {
    "color": COLORS.get(peer, "gray"),
    "marker": "o",
    "markersize": 3,
    "linewidth": 2 if peer == "lstm_jax" else 1,
  }
