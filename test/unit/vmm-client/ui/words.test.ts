import { describe, expect, it } from 'vitest';
import type { MachineView, Severity } from '../../../../vmm-client/ui/page/model.ts';
import {
  compareMachines,
  compareQueues,
  describeQueueState,
  formatBytes,
  formatCount,
  formatDuration,
  formatLatency,
} from '../../../../vmm-client/ui/page/words.ts';
import type { QueueReport } from '../../../../vmm-client/vmm/queues/queue-report.ts';

const queue = (changes: Partial<QueueReport>): QueueReport => ({
  ...{ index: 0, name: 'q', role: 'requests', state: 'idle', size: 128, in_flight: 0, mean_in_flight: 0, rate: 0 },
  ...{ latency_us: null, waiting_ms: 0, used: 0, exact: true },
  ...changes,
});

const machine = (name: string, severity: Severity, rate = 0): MachineView => ({
  ...{ key: name, name, socket: name, state: 'Running', severity, headline: '', memoryBytes: 0, vcpus: [] },
  devices: [{ id: 'd', slot: 0, kind: 'disk', status: 'running', backend: 'connected', queues: [queue({ rate })] }],
  operation: null,
  actions: [],
  hasConsole: false,
});

describe('Numbers', () => {
  it('are short', () => {
    expect([0, 7, 0.5, 1234, 9999, 12_345, 999_600, 4_560_000].map(formatCount)).toEqual([
      ...['0', '7', '0.5', '1,234', '9,999', '12.3k', '1.00M', '4.56M'],
    ]);
    expect([8.5, 85, 1250, 21_000, 2_100_000].map(formatLatency)).toEqual([
      ...['8.5 µs', '85 µs', '1.25 ms', '21.0 ms', '2.1 s'],
    ]);
    expect([300, 4200, 150_000, 8_000_000].map(formatDuration)).toEqual(['300 ms', '4 s', '2 min', '2 h']);
    expect([512, 1 << 20, 3 << 29].map(formatBytes)).toEqual(['512 B', '1 MiB', '1.5 GiB']);
  });
});

describe('The state of a queue', () => {
  it('says for how long something waits', () => {
    expect(describeQueueState(queue({ state: 'stuck', waiting_ms: 61_000 }))).toBe('stuck for 61 s');
    expect(describeQueueState(queue({ state: 'waiting', waiting_ms: 100 }))).toBe('waiting');
    expect(describeQueueState(queue({ state: 'empty' }))).toBe('no buffers');
  });
});

describe('The order', () => {
  it('of machines has what is wrong first, then the busy ones', () => {
    const all = [
      machine('idle', 'idle'),
      machine('little', 'busy', 100),
      machine('much', 'busy', 50_000),
      machine('gone', 'away'),
      machine('stuck', 'bad'),
      machine('paused', 'still'),
      machine('waits', 'slow'),
    ];
    expect(all.sort(compareMachines).map(({ name }) => name)).toEqual([
      ...['stuck', 'waits', 'gone', 'much', 'little', 'idle', 'paused'],
    ]);
  });

  it('of machines stays while they do about as much', () => {
    expect(compareMachines(machine('a', 'busy', 1000), machine('b', 'busy', 1010))).toBeLessThan(0);
  });

  it('of queues is by urgency, then by rate', () => {
    const all = [
      queue({ name: 'idle' }),
      queue({ name: 'slow', state: 'busy', rate: 10 }),
      queue({ name: 'fast', state: 'busy', rate: 10_000 }),
      queue({ name: 'stuck', state: 'stuck', waiting_ms: 3000 }),
      queue({ name: 'off', state: 'off' }),
    ];
    expect(all.sort(compareQueues).map(({ name }) => name)).toEqual(['stuck', 'fast', 'slow', 'idle', 'off']);
  });
});
