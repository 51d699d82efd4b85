// API keys as a person types them, and which refusals another key would change.
import { RequestError } from './problems';

const KEY_CHARACTERS_MAX = 256;
// `exo-<id>-<secret>`. Anything else would be a wrong key that counts, or could not even be sent in a header.
const KEY = /^exo-([^\s-]+)-[\x21-\x7e]+$/;

/** The key in what was pasted, or null. */
export function parseKey(text: string): string | null {
  const trimmed = text.trim();
  return trimmed.length <= KEY_CHARACTERS_MAX && KEY.test(trimmed) ? trimmed : null;
}

/** The part of a key that names it and is no secret. */
export function keyId(key: string | null): string | null {
  return (key && KEY.exec(key)?.[1]) ?? null;
}

/** Whether the node is there and lets nobody look without (another) key. */
export function isLocked(error: unknown): error is RequestError {
  if (!(error instanceof RequestError)) return false;
  const { status, code } = error;
  // 421: without a key, a node goes by few names only.
  return status === 401 || status === 403 || status === 421 || code === 'too_many_wrong_keys';
}
