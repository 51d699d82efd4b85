// Turns many requests to do something into few: at once when idle, then at most once per interval, never two at once.

export interface Timers {
  now(): number;
  /** Calls `action` after `delayMs`; returns what undoes it. */
  after(delayMs: number, action: () => void): () => void;
}

export class Coalescer {
  #lastStartMs = -Infinity;
  #isRunning = false;
  #isWanted = false;
  #cancelTimer: (() => void) | null = null;

  constructor(
    private readonly action: () => Promise<void>,
    private readonly intervalMs: number,
    private readonly timers: Timers,
  ) {}

  /** Ask for a run: what changes during a run is seen by one more run after it. */
  request(): void {
    this.#isWanted = true;
    this.#schedule();
  }

  stop(): void {
    this.#isWanted = false;
    this.#cancelTimer?.();
    this.#cancelTimer = null;
  }

  #schedule(): void {
    if (!this.#isWanted || this.#isRunning || this.#cancelTimer) return;
    const waitMs = this.#lastStartMs + this.intervalMs - this.timers.now();
    if (waitMs <= 0) {
      void this.#run();
      return;
    }
    this.#cancelTimer = this.timers.after(waitMs, () => {
      this.#cancelTimer = null;
      void this.#run();
    });
  }

  async #run(): Promise<void> {
    this.#isWanted = false;
    this.#isRunning = true;
    this.#lastStartMs = this.timers.now();
    try {
      await this.action();
    } finally {
      this.#isRunning = false;
      this.#schedule();
    }
  }
}
