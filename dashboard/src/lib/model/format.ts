// Numbers as people read them. Unknown is a dash, never a zero.

export const UNKNOWN = '–';

const STEPS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** Bytes with a binary unit: 3 significant digits at most, `–` when unknown. */
export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return UNKNOWN;
  let step = 0;
  let amount = value;
  // 1023.95 would be written as 1024.0 of the unit below.
  while (amount >= 1023.95 && step < STEPS.length - 1) {
    amount /= 1024;
    step++;
  }
  return `${step === 0 || amount >= 100 ? Math.round(amount) : Number(amount.toFixed(1))} ${STEPS[step]}`;
}

export function percent(value: number | null | undefined): string {
  return value === null || value === undefined ? UNKNOWN : `${Math.round(value)} %`;
}

export function celsius(value: number | null | undefined): string {
  return value === null || value === undefined ? UNKNOWN : `${Math.round(value)} °C`;
}

export function watts(value: number | null | undefined): string {
  return value === null || value === undefined ? UNKNOWN : `${Math.round(value)} W`;
}

export function megahertz(value: number | null | undefined): string {
  return value === null || value === undefined ? UNKNOWN : `${Math.round(value)} MHz`;
}

/** A duration in milliseconds: `31 ms`, `1.4 s`. */
export function milliseconds(value: number | null | undefined): string {
  if (value === null || value === undefined) return UNKNOWN;
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

/** A time that has passed, in whole seconds and above: `4 s`, `2 min`, `3 h`. */
export function age(elapsedMs: number): string {
  const seconds = Math.max(0, Math.round(elapsedMs / 1000));
  if (seconds < 100) return `${seconds} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

export function rate(value: number | null | undefined): string {
  if (value === null || value === undefined) return UNKNOWN;
  return value >= 100 ? String(Math.round(value)) : value.toFixed(1);
}

/** `1 node`, `2 nodes`. */
export function count(value: number, singular: string, plural = `${singular}s`): string {
  return `${value.toLocaleString('en')} ${value === 1 ? singular : plural}`;
}
