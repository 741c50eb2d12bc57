"use strict";
// How a token is drawn from the logits y, as in lstm_jax/language/drawing.py.

// Returns a function whose values are uniform in [0, 1): xorshift with 128 bits
// of state (Marsaglia 2003, Xorshift RNGs, section 3.1). The same seed gives
// the same values.
function makeRandom(seed) {
  let [x, y, z, w] = [1, 2, 3, 4].map(
    (k) => Math.imul(seed + k, 2654435769) ^ (k << 20));
  const next = () => {
    const t = x ^ (x << 11);
    x = y, y = z, z = w;
    w = w ^ (w >>> 19) ^ t ^ (t >>> 8);
    return (w >>> 0) / 2 ** 32;
  };
  for (let k = 0; k < 32; k++) next();  // mixes a state with few 1 bits
  return next;
}

// Writes softmax(y / temperature) into p; at temperature 0, the most likely
// token has the probability 1. Suppressed tokens have the probability 0.
function softmax(y, temperature, p, suppressed = []) {
  let likeliest = -1;
  for (let token = 0; token < y.length; token++) {
    if (suppressed.includes(token)) continue;
    if (likeliest < 0 || y[token] > y[likeliest]) likeliest = token;
  }
  if (temperature === 0) {
    p.fill(0);
    p[likeliest] = 1;
    return;
  }
  let total = 0;
  for (let token = 0; token < y.length; token++) {
    p[token] = Math.exp((y[token] - y[likeliest]) / temperature);
  }
  for (const token of suppressed) p[token] = 0;
  for (let token = 0; token < y.length; token++) total += p[token];
  for (let token = 0; token < y.length; token++) p[token] /= total;
}

// Keeps the smallest set of most likely tokens whose probabilities sum to topP
// or more, and all tokens that are as likely as the least likely of the set.
// Scales their probabilities to sum to 1, and sets those of the others to 0.
function keepTopP(p, topP) {
  if (topP >= 1) return;
  const ascending = Float64Array.from(p).sort();
  let threshold = 0, before = 0;
  for (let k = p.length - 1; k >= 0; k--) {
    if (k < p.length - 1 && before >= topP) break;
    threshold = ascending[k];
    before += ascending[k];
  }
  let total = 0;
  for (let token = 0; token < p.length; token++) {
    if (p[token] < threshold) p[token] = 0;
    total += p[token];
  }
  for (let token = 0; token < p.length; token++) p[token] /= total;
}

// Returns a token with the probabilities p, given a uniform value in [0, 1).
function drawFrom(p, uniform) {
  let left = uniform, last = 0;
  for (let token = 0; token < p.length; token++) {
    if (p[token] === 0) continue;
    last = token;
    left -= p[token];
    if (left < 0) break;
  }
  return last;
}

// Returns log Σ exp y, so that −log p = logSumExp(y) − y[token].
function logSumExp(y) {
  let largest = -Infinity, total = 0;
  for (const v of y) largest = Math.max(largest, v);
  for (const v of y) total += Math.exp(v - largest);
  return largest + Math.log(total);
}

// Returns the tokens of the `count` largest values, the largest first.
function largestOf(values, count) {
  const found = [];
  for (let token = 0; token < values.length; token++) {
    const v = values[token];
    if (found.length === count && v <= values[found[count - 1]]) continue;
    let k = Math.min(found.length, count - 1);
    while (k > 0 && values[found[k - 1]] < v) {
      found[k] = found[k - 1];
      k--;
    }
    found[k] = token;
  }
  return found;
}
