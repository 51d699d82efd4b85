// Time for tests, moved by hand.
import type { Timers } from '../model/coalesce';

/** A clock that is moved by hand; due timers run in order, and what they start is awaited. */
export class HandTimers implements Timers {
  nowMs = 0;
  #due: { at: number; action: () => void }[] = [];
  now = () => this.nowMs;
  after(delayMs: number, action: () => void) {
    const entry = { at: this.nowMs + delayMs, action };
    this.#due.push(entry);
    return () => void (this.#due = this.#due.filter((other) => other !== entry));
  }
  get waiting() {
    return this.#due.length;
  }
  async advance(ms: number) {
    const end = this.nowMs + ms;
    await settle();
    for (;;) {
      const next = this.#due.filter((entry) => entry.at <= end).sort((one, other) => one.at - other.at)[0];
      if (!next) break;
      this.#due = this.#due.filter((entry) => entry !== next);
      this.nowMs = next.at;
      next.action();
      await settle();
    }
    this.nowMs = end;
  }
}

/** Lets everything run that is ready to. */
export const settle = () => new Promise((resolve) => setTimeout(resolve));
