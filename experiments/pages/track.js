"use strict";
// A text as the model reads it: its tokens, the state after each of them, and
// the −log p of each. The states are kept in blocks, so that the oldest can be
// dropped.

const BLOCK = 128;  // tokens
// The most bytes of states and the most tokens that are kept; but two blocks
// are kept even if they are larger.
const KEPT_BYTES = 96 * 2 ** 20, KEPT_TOKENS = 6144;

class Track {
  // start: the token that stands before the text, such as a line break.
  constructor(model, start) {
    this.model = model;
    this.state = model.zeroState();
    this.y = new Float64Array(model.bias.length);
    const room = Math.floor(KEPT_BYTES / 4 / model.stateSize);
    this.room = BLOCK * Math.max(2, Math.floor(
      Math.min(room, KEPT_TOKENS) / BLOCK));
    model.step(this.state, start);
    model.logits(this.state, this.y);
    this.startState = this.state.all.slice();
    this.clear();
  }

  clear() {
    this.tokens = [], this.nats = [], this.blocks = [];
    this.dropped = 0;  // tokens that are no longer kept, whole blocks
    this.restore(-1);
  }

  get length() {
    return this.dropped + this.tokens.length;
  }

  // Reads one more token, and returns its −log p in nats.
  push(token) {
    const nats = logSumExp(this.y) - this.y[token];
    this.model.step(this.state, token);
    this.model.logits(this.state, this.y);
    const t = this.tokens.length, size = this.model.stateSize;
    if (t % BLOCK === 0) this.blocks.push(new Float32Array(BLOCK * size));
    this.blocks[Math.floor(t / BLOCK)].set(this.state.all, t % BLOCK * size);
    this.tokens.push(token);
    this.nats.push(nats);
    return nats;
  }

  // Forgets the oldest block if no room is left; returns how many tokens it
  // had, or 0.
  drop() {
    if (this.tokens.length < this.room) return 0;
    this.blocks.shift();
    this.tokens.splice(0, BLOCK);
    this.nats.splice(0, BLOCK);
    this.dropped += BLOCK;
    return BLOCK;
  }

  // Keeps the first `length` tokens of the text, and forgets those after them.
  truncate(length) {
    if (length >= this.length) return;
    this.tokens.length = this.nats.length = length - this.dropped;
    this.blocks.length = Math.ceil(this.tokens.length / BLOCK);
    this.restore(length - 1);
  }

  // Continues from the state after the token t, or after the start token if the
  // text has no t or no longer keeps it.
  restore(t) {
    this.state.all.set(t < this.dropped ? this.startState : this.stateAt(t));
    this.model.logits(this.state, this.y);
  }

  // Returns the state after the token t, a view.
  stateAt(t) {
    const k = t - this.dropped, size = this.model.stateSize;
    const block = this.blocks[Math.floor(k / BLOCK)];
    return block.subarray(k % BLOCK * size, (k % BLOCK + 1) * size);
  }

  // Writes the logits of the token after t into y; those after the start token
  // if t is −1, or if the text no longer keeps t.
  logitsAfter(t, y) {
    const scratch = this.scratch || (this.scratch = this.model.zeroState());
    scratch.all.set(t < this.dropped ? this.startState : this.stateAt(t));
    this.model.logits(scratch, y);
  }
}
