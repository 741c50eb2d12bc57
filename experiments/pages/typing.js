"use strict";
// A text that somebody types into the explorer, which the model in the page
// reads at each change. The button goes back and forth between it and the page's
// text, and each of them keeps its cursor.

function listenToTyping(pageText) {
  $("typing").hidden = !data.model;
  $("untyped").textContent = data.no_typing || "";
  if (!data.model) return;
  $("cost").textContent = data.cost;
  const tokenizer = data.words ? new WordTokens(data.symbols, data.words)
    : new CharTokens(data.symbols);
  const cursors = new WeakMap();
  let reading = 0, typed = null, unpacking = null;

  const showOne = async (shown) => {
    if (text !== shown) cursors.set(text, cursor);
    const isTyped = shown === typed;
    $("swap").disabled = !typed;
    $("swap").textContent = isTyped ? "Show the page’s text" : "Show my text";
    $("note").hidden = !isTyped;
    $("about").textContent = aboutOf(isTyped ? "a text of your own" : data.source);
    await showText(shown, cursors.get(shown) ?? shown.pieces.length - 1);
  };

  const read = async () => {
    const isCurrent = () => current === reading, current = ++reading;
    setBusy(true);
    try {
      const model = await (unpacking ??= Model.unpack(data.model));
      if (!isCurrent()) return;
      const items = tokenizer.encode($("own").value);
      const known = items.filter(({ token }) => token >= 0);
      const spell = tokenizer.spell();
      const some = known.slice(0, TypedText.room(model)).map(
        ({ token }) => ({ token, piece: spell(token) }));
      const next = some.length ? new TypedText(data, model, some) : null;
      if (next && !await next.read(isCurrent)) return;
      const unknown = tokenizer.unknown.length
        ? some.filter(({ token }) => tokenizer.unknown.includes(token)).length
        : items.length - known.length;
      $("score").textContent = scoreOfText(next?.nats, some.length,
        known.length - some.length, unknown);
      typed = next;
      await showOne(next ?? pageText);
    } catch (error) {
      if (!isCurrent()) return;
      $("score").textContent = `This text cannot be read: ${error.message}`;
    } finally {
      setBusy(false);
    }
  };

  $("own").addEventListener("input", (event) => {
    if (!event.isComposing) read();  // é, but not the accent typed before the e
  });
  $("own").addEventListener("compositionend", read);
  $("swap").addEventListener("click",
    () => showOne(text === typed ? pageText : typed));
}

// Returns what a text costs, and what of it was left out.
//
// nats: of each token after the first; numRead: tokens read; numLeft: tokens left
// out because there is no more room; numUnknown: characters left out, or unknown
// words.
function scoreOfText(nats, numRead, numLeft, numUnknown) {
  const units = (n) => `${count(n)} ${data.unit}${n === 1 ? "" : "s"}`;
  const parts = [];
  if (numRead) parts.push(units(numRead));
  if (nats?.length) {
    const mean = nats.reduce((sum, v) => sum + v, 0) / nats.length;
    parts.push(`${mean.toFixed(3)} nats per ${data.unit}, from the second on`);
  }
  if (numLeft) parts.push(`${count(numLeft)} more are not read`);
  if (numUnknown) {
    parts.push(data.words ? `${count(numUnknown)} not in the vocabulary`
      : `${count(numUnknown)} not in the vocabulary, left out`);
  }
  return parts.length ? `${parts.join("; ")}.` : "";
}
