"use strict";
// A text that somebody types into the explorer, which the model in the page
// reads at each change.

function listenToTyping(pageText) {
  $("typing").hidden = !data.model;
  $("untyped").textContent = data.untyped || "";
  if (!data.model) return;
  $("cost").textContent = data.cost;
  const tokenizer = data.words ? new WordTokens(data.symbols, data.words)
    : new CharTokens(data.symbols);
  let reading = 0, model;

  const readPage = () => {
    reading++;
    $("own").value = "";
    $("score").textContent = "";
    showText(pageText, startOf(pageText));
  };

  const read = async () => {
    const current = ++reading, isCurrent = () => current === reading;
    setBusy(true);
    model ??= await Model.unpack(data.model);
    const all = tokenizer.encode($("own").value);
    const known = all.filter(({ token }) => token >= 0);
    const spell = tokenizer.spell();
    const items = known.slice(0, TypedText.room(model)).map(
      ({ token }) => ({ token, piece: spell(token) }));
    if (!isCurrent()) return;
    if (!items.length) return readPage();
    const typed = new TypedText(data, model, items);
    if (!await typed.read(isCurrent) || !isCurrent()) return;
    $("score").textContent = scoreOfText(typed, all.length, known.length);
    await showText(typed, items.length - 1);
  };

  $("own").addEventListener("input", read);
  $("pagetext").addEventListener("click", readPage);
}

function scoreOfText({ tokens, actual }, numAll, numKnown) {
  const units = (n) => `${count(n)} ${data.unit}${n === 1 ? "" : "s"}`;
  const sum = actual.reduce((total, p) => total - Math.log(p), 0);
  return units(tokens.length)
    + (actual.length ? `; ${(sum / actual.length).toFixed(3)} nats each after `
    + "the first" : "")
    + (numAll > numKnown ? `; ${count(numAll - numKnown)} outside the `
    + "vocabulary, not read" : "")
    + (numKnown > tokens.length ? `; the other ${count(numKnown - tokens.length)}`
    + " are too many for this page" : "") + ".";
}
