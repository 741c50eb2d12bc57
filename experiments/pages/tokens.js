"use strict";
// The tokens of a text and the text of tokens, as the tokenizers of
// lstm_jax/language. `encode` returns [{ token, from, to }]: each token and its
// place in the text. A character that the model does not know has the token −1;
// a word that it does not know has the token in `unknown`. `spell` returns a
// function that is called with the tokens of a text, one after another, and
// returns the text that each of them adds.

class CharTokens {
  constructor(symbols) {
    this.symbols = symbols;
    this.tokenOf = new Map(symbols.map((symbol, token) => [symbol, token]));
    this.unknown = [];
  }

  encode(text) {
    const items = [];
    let from = 0;
    for (const symbol of text) {
      const to = from + symbol.length;
      items.push({ token: this.tokenOf.get(symbol) ?? -1, from, to });
      from = to;
    }
    return items;
  }

  spell() {
    return (token) => this.symbols[token];
  }
}

// The characters that Python's str.split() treats as spaces, without the line
// break.
const SPACE = "\\t\\v\\f\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a"
  + "\\u2028\\u2029\\u202f\\u205f\\u3000";
const WORD = "[\\p{L}\\p{N}_]";

// The rules say where a space belongs. A piece that stands against them, with a
// space or without one, is another token, whose symbol begins with a space.
class WordTokens {
  // rules: clipped_start and clipped_end, words that Shakespeare shortens, as
  // patterns; no_space_before, no_space_after and quotes, lists of marks.
  constructor(symbols, rules) {
    this.symbols = symbols;
    this.tokenOf = new Map(symbols.map((symbol, token) => [symbol, token]));
    this.unknown = [symbols.length - 1];  // <unk> is the last symbol
    this.rules = rules;
    this.piece = new RegExp(`['’](?:${rules.clipped_start})(?!${WORD})`
      + `|(?:${rules.clipped_end})['’](?!${WORD})`
      + `|${WORD}+(?:['’]${WORD}+)*|--+|.`, "gisu");
  }

  encode(text) {
    const items = [], add = (symbol, from, to) => items.push(
      { token: this.tokenOf.get(symbol) ?? this.unknown[0], from, to });
    let start = 0;
    text.split("\n").forEach((line, number) => {
      const chunks = [...line.matchAll(new RegExp(`[^${SPACE}]+`, "gu"))];
      const indentation = chunks.length ? chunks[0].index : 0;
      if (number) {
        add("\n" + " ".repeat(indentation), start - 1, start + indentation);
      }
      let before = "", afterSpace = true;
      for (const chunk of chunks) {
        let space = before !== "";
        for (const match of chunk[0].matchAll(this.piece)) {
          const expected = this.spaceBetween(before, afterSpace, match[0]);
          const from = start + chunk.index + match.index;
          add((space === expected ? "" : " ") + match[0], from,
            from + match[0].length);
          afterSpace = space || !before;
          before = match[0];
          space = false;
        }
      }
      start += line.length + 1;
    });
    return items;
  }

  spell() {
    let before = "", afterSpace = true;
    return (token) => {
      const symbol = this.symbols[token];
      if (symbol.startsWith("\n")) {
        before = "";
        return symbol;
      }
      const piece = symbol.replace(/^ /, "");
      const space = this.spaceBetween(before, afterSpace, piece)
        !== (piece !== symbol);
      afterSpace = space || !before;
      before = piece;
      return (space ? " " : "") + piece;
    };
  }

  // Returns whether the rules put a space between two pieces of a line.
  spaceBetween(before, afterSpace, piece) {
    const { no_space_before, no_space_after, quotes } = this.rules;
    if (!before || no_space_before.includes(piece)) return false;
    if (piece.startsWith("--")) return false;
    if (quotes.includes(before)) return !afterSpace;
    return !no_space_after.includes([...before][0]);
  }
}
