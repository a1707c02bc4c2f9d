/** Lines of a stream, however it comes and however long they are. */

import { PassThrough } from 'node:stream';
import { finished } from 'node:stream/promises';
import { describe, expect, it } from 'vitest';
import { MAX_LINE_BYTES, onLines } from '../../../../vmm-client/vmm/bounded-lines.ts';

const linesOf = async (...chunks: readonly (string | Buffer)[]): Promise<string[]> => {
  const stream = new PassThrough();
  const lines: string[] = [];
  onLines(stream, (line) => lines.push(line));
  for (const chunk of chunks) stream.write(chunk);
  stream.end();
  await finished(stream);
  return lines;
};

describe('lines of a stream', () => {
  it.each<[string, readonly (string | Buffer)[], readonly string[]]>([
    ['of one chunk', ['a\nb\n'], ['a', 'b']],
    ['in pieces, a character too', [Buffer.of(0x61, 0xc3), Buffer.of(0xa4), '\nb', 'c\n'], ['a\u00e4', 'bc']],
    ['empty ones', ['\n\na\n\n'], ['', '', 'a', '']],
    ['without a newline at the end', ['a\nb'], ['a', 'b']],
    ['none', [], []],
  ])('are what is between newlines: %s', async (_, chunks, lines) => {
    expect(await linesOf(...chunks)).toEqual(lines);
  });

  it('are cut where they are too long, and the next one is whole', async () => {
    const full = 'x'.repeat(MAX_LINE_BYTES);
    expect(await linesOf(`${full}\n${full}y\nz\n`)).toEqual([full, full, 'z']);
    expect(await linesOf(full, full, 'y\n', 'z')).toEqual([full, 'z']);
  });
});
