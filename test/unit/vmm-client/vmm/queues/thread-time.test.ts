import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { parseCpuMs, threadCpuMs } from '../../../../../vmm-client/vmm/queues/thread-time.ts';

describe('The CPU time of a thread', () => {
  it('is that of user and system, in hundredths of a second', () => {
    const behind = 'S 1 2 3 4 -1 4194624 11 12 13 14 250 50 7 8 20 0 11 0 100';
    expect(parseCpuMs(`77 (vcpu) ${behind}`)).toBe(3000);
    expect(parseCpuMs(`77 (a) b (c) ) ${behind}`)).toBe(3000);
  });

  it('is told of threads of this process', () => {
    const thread = Number(readdirSync('/proc/self/task')[0]);
    expect(threadCpuMs(thread)).toBeGreaterThan(0);
    expect(threadCpuMs(1)).toBeUndefined();
  });
});
