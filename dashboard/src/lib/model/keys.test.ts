import { describe, expect, it } from 'vitest';
import { isLocked, keyId, parseKey } from './keys';
import { RequestError, unreachable } from './problems';

describe('parseKey', () => {
  it('takes a key with what was pasted around it', () => {
    expect(parseKey('  exo-1a2b3c4d-ffee00\n')).toBe('exo-1a2b3c4d-ffee00');
    expect(parseKey('exo-owner-00-11')).toBe('exo-owner-00-11');
  });

  it.each(['', 'exo-', 'exo-1a2b', 'exo-1a2b-', 'exo--ff', 'sk-1a2b-ff', 'exo-1a2b-f f', 'exo-1a2b-fü'])(
    'refuses %j, which would be a wrong key or could not be sent',
    (text) => expect(parseKey(text)).toBeNull(),
  );

  it('refuses what is longer than any key', () => {
    expect(parseKey(`exo-1a2b-${'f'.repeat(247)}`)).not.toBeNull();
    expect(parseKey(`exo-1a2b-${'f'.repeat(248)}`)).toBeNull();
  });

  it('names a key without its secret', () => {
    expect(keyId('exo-1a2b3c4d-ffee00')).toBe('1a2b3c4d');
    expect(keyId(null)).toBeNull();
  });
});

describe('isLocked', () => {
  it.each([
    [401, 'key_missing', true],
    [403, 'scope_missing', true],
    [421, 'host_not_trusted', true],
    [429, 'too_many_wrong_keys', true],
    [429, 'too_many_requests', false],
    [503, 'no_master', false],
  ])('%i %s: %s', (status, code, expected) => {
    expect(isLocked(new RequestError('no', status, code))).toBe(expected);
  });

  it('is not what a node does that cannot be reached', () => {
    expect(isLocked(unreachable())).toBe(false);
    expect(isLocked(new Error('gone'))).toBe(false);
  });
});
