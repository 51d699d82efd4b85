// How long to wait before the next try: doubling, with a ceiling, spread so that pages do not return together.

const FIRST_MS = 500;
const CEILING_MS = 10_000;

/** Wait before try number `attempt` (from 0); `random` is in [0, 1) and shortens it by up to a quarter. */
export function backoffMs(attempt: number, random: number): number {
  const full = Math.min(CEILING_MS, FIRST_MS * 2 ** Math.min(attempt, 20));
  return Math.round(full * (1 - random / 4));
}
