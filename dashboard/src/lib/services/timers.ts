// The browser's clock and timers, as values that tests can replace.
import type { Timers } from '../model/coalesce';

export const browserTimers: Timers = {
  now: () => performance.now(),
  after(delayMs, action) {
    const timer = setTimeout(action, delayMs);
    return () => clearTimeout(timer);
  },
};
