import { describe, expect, it } from 'vitest';
import {
  formatCount,
  formatSize,
  parseDuration,
  parseInteger,
  parseSize,
  UsageError,
} from '../../../../vmm-client/cli/quantity.ts';

describe('parseSize', () => {
  it.each([
    ['0', 0],
    ['512', 512],
    ['4k', 4096],
    ['4K', 4096],
    ['4KiB', 4096],
    ['16M', 16 * 1024 ** 2],
    ['1.5M', 1.5 * 1024 ** 2],
    ['2G', 2 * 1024 ** 3],
    ['1T', 1024 ** 4],
    ['100b', 100],
    [' 8k ', 8192],
  ])('reads %j as %d bytes', (text, bytes) => {
    expect(parseSize(text)).toBe(bytes);
  });

  it.each(['', 'k', '-1', '4q', '0x10', '1e6', '4kk', '0.3k', '99999999T', '4 096'])('refuses %j', (text) => {
    expect(() => parseSize(text)).toThrow(UsageError);
  });
});

describe('parseDuration', () => {
  it.each([
    ['5', 5000],
    ['0.25', 250],
    ['5s', 5000],
    ['500ms', 500],
    ['2m', 120_000],
    ['1h', 3_600_000],
  ])('reads %j as %d ms', (text, ms) => {
    expect(parseDuration(text)).toBe(ms);
  });

  it.each(['', 's', '-5', '5 days', '1e3'])('refuses %j', (text) => {
    expect(() => parseDuration(text)).toThrow(UsageError);
  });
});

describe('parseInteger', () => {
  it('takes both bounds', () => {
    expect([parseInteger(1, 8)('1'), parseInteger(1, 8)('8')]).toEqual([1, 8]);
  });

  it.each(['0', '9', '1.5', '-1', '', '1k'])('refuses %j outside of 1 to 8', (text) => {
    expect(() => parseInteger(1, 8)(text)).toThrow('whole number from 1 to 8');
  });
});

describe('formatting', () => {
  it.each([
    [0, '0 B'],
    [1023, '1023 B'],
    [1024, '1 KiB'],
    [1536, '1.5 KiB'],
    [1024 ** 2 * 100.25, '100.3 MiB'],
    [1024 ** 3 * 1001.7, '1002 GiB'],
    [2 ** 53 - 1, '8 PiB'],
  ])('shows %d bytes as %j', (bytes, text) => {
    expect(formatSize(bytes)).toBe(text);
  });

  it('separates thousands', () => {
    expect(formatCount(1234567.4)).toBe('1,234,567');
  });
});
