// The API key that requests show: kept for as long as the browser's tab is open, and nowhere else.

const STORED = 'exo-api-key';

let kept = stored();

export function apiKey(): string | null {
  return kept;
}

/** Show this key from now on; null: none. */
export function keepApiKey(key: string | null): void {
  kept = key;
  try {
    if (key === null) sessionStorage.removeItem(STORED);
    else sessionStorage.setItem(STORED, key);
  } catch {
    // Storage may be forbidden; the key then lasts as long as the page.
  }
}

function stored(): string | null {
  try {
    return sessionStorage.getItem(STORED);
  } catch {
    return null;
  }
}
