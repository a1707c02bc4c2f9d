import { describe, expect, it } from 'vitest';
import {
  connectAnswer,
  findConnectLine,
  LINE_BAD,
  LINE_INCOMPLETE,
  parseConnectLine,
} from '../../../../backends/vsock/connect-line.ts';

describe('a CONNECT line', () => {
  it.each([
    ['', LINE_INCOMPLETE],
    ['CONNECT 5', LINE_INCOMPLETE],
    ['CONNECT 5\n', 10],
    ['CONNECT 5\nCONNECT 6\n', 10],
    ['\n', 1],
    ['x'.repeat(31), LINE_INCOMPLETE],
    [`${'x'.repeat(31)}\n`, 32],
    ['x'.repeat(32), LINE_BAD],
    [`${'x'.repeat(32)}\n`, LINE_BAD],
  ])('%j ends at %i', (text, end) => {
    expect(findConnectLine(Buffer.from(text))).toBe(end);
  });

  it.each([
    ['CONNECT 0\n', 0],
    ['CONNECT 4294967295\n', 4_294_967_295],
    ['CONNECT 4294967296\n', undefined],
    ['CONNECT 99999999999\n', undefined],
    ['Connect  22 \r\n', 22],
    ['CONNECT22\n', undefined],
    ['CONNECT 2 2\n', undefined],
    ['CONNECT 0x10\n', undefined],
    ['CONNECT 1', undefined],
    ['CONNECT 1\n\n', undefined],
  ])('%j asks for %s', (line, port) => {
    expect(parseConnectLine(line)).toBe(port);
  });

  it('is answered', () => {
    expect(connectAnswer(1_073_741_824)).toBe('OK 1073741824\n');
  });
});
