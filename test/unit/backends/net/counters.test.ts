import { describe, expect, it } from 'vitest';
import type { Logger } from '../../../../backends/core/logging.ts';
import { Counters, sumCounts } from '../../../../backends/net/counters.ts';

const create = () => {
  const lines: string[] = [];
  return { lines, counters: new Counters({ warn: (line: string) => lines.push(line) } as unknown as Logger) };
};

describe('the counters', () => {
  it('name what is not 0', () => {
    const { counters } = create();
    counters.transmitted = 3;
    counters.oversized = 1;
    counters.noteError(22);
    counters.noteError(22);

    expect(counters.summary()).toEqual({ transmitted: 3, oversized: 1, EINVAL: 2 });
  });

  it('log each kind of error once, and only so many kinds', () => {
    const { counters, lines } = create();

    for (let round = 0; round < 3; round += 1) for (let errno = 1; errno <= 40; errno += 1) counters.noteError(errno);

    expect(lines).toHaveLength(8);
    expect(new Set(lines).size).toBe(8);
    expect(counters.summary()).toMatchObject({ EPERM: 3, EPIPE: 3 });
  });

  it('of several threads are summed by name', () => {
    expect(sumCounts([{ received: 2, EINVAL: 1 }, {}, { received: 3, transmitted: 1 }])).toEqual({
      received: 5,
      transmitted: 1,
      EINVAL: 1,
    });
  });
});
