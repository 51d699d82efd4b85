import { describe, expect, it } from 'vitest';
import * as format from './format';

describe('format', () => {
  it.each([
    [0, '0 B'],
    [1023, '1023 B'],
    [1024, '1 KiB'],
    [521_728, '510 KiB'],
    [1_048_575, '1 MiB'],
    [8 * 1024 ** 3, '8 GiB'],
    [7.76 * 1024 ** 3, '7.8 GiB'],
    [1_000_000 * 1024 ** 3, '977 TiB'],
    [5_000_000 * 1024 ** 3, '4883 TiB'],
  ])('writes %d bytes as %s', (value, text) => {
    expect(format.bytes(value)).toBe(text);
  });

  it('writes what is unknown as a dash and zero as zero', () => {
    for (const write of [
      format.bytes,
      format.percent,
      format.celsius,
      format.watts,
      format.megahertz,
      format.milliseconds,
      format.rate,
    ]) {
      expect(write(null)).toBe('–');
      expect(write(undefined)).toBe('–');
      expect(write(0)).toMatch(/^0/);
    }
  });

  it('changes from milliseconds to seconds', () => {
    expect(format.milliseconds(31.4)).toBe('31 ms');
    expect(format.milliseconds(1440)).toBe('1.4 s');
  });

  it('counts things', () => {
    expect(format.count(1, 'node')).toBe('1 node');
    expect(format.count(1234, 'layer')).toBe('1,234 layers');
  });
});
