import { describe, expect, it } from 'vitest';
import { readExits, readInfo, readProgress, readQueues } from '../../../../vmm-client/ui/answers.ts';
import { type Round, viewMachine, viewUnreachable } from '../../../../vmm-client/ui/machine-view.ts';

const NAMED = { key: 'k', name: 'web', socket: '/run/web.sock' };
const QUEUE = {
  ...{ index: 0, name: 'request 0', role: 'requests', state: 'busy', size: 128, in_flight: 16, mean_in_flight: 15 },
  ...{ rate: 12_345, latency_us: 1300, waiting_ms: 0, used: 1, exact: true },
};

interface What {
  readonly state?: string;
  readonly queue?: object;
  readonly device?: object;
  readonly cpuMs?: number;
  readonly exits?: number;
  readonly atMs?: number;
}

const round = ({ state = 'Running', queue = {}, device = {}, cpuMs = 0, exits = 0, atMs = 0 }: What = {}): Round => ({
  atMs,
  info: readInfo({
    state,
    memory_actual_size: 1 << 30,
    config: { cpus: { boot_vcpus: 1 }, serial: { mode: 'Null' } },
  }),
  queues: readQueues({
    at_ms: atMs,
    devices: [
      {
        id: '_disk0',
        slot: 0,
        kind: 'disk',
        status: 'running',
        backend: 'connected',
        queues: [{ ...QUEUE, ...queue }],
        ...device,
      },
    ],
    vcpus: [{ index: 0, cpu_ms: cpuMs }],
  }),
  exits: readExits({ vcpu0: { exits_io: exits, exits_mmio: 0 }, _disk0: { kicks: 1 } }),
  progress: null,
});

const judge = (what: What): string => {
  const { severity, headline } = viewMachine(NAMED, round(what), undefined, false);
  return `${severity}: ${headline}`;
};

describe('What matters of a machine', () => {
  it('is the worst, then the busiest', () => {
    const quiet = { state: 'idle', rate: 0, in_flight: 0 };
    expect(judge({})).toBe('busy: busy: _disk0 request 0, 12.3k a second');
    expect(judge({ queue: { state: 'stuck', waiting_ms: 4200 } })).toBe(
      'bad: stuck for 4 s: _disk0 request 0, 16 requests wait',
    );
    expect(judge({ queue: { state: 'waiting', waiting_ms: 800, in_flight: 1 } })).toBe(
      'slow: waiting for 800 ms: _disk0 request 0, 1 request waits',
    );
    expect(judge({ device: { backend: 'away' } })).toBe('bad: the back end of _disk0 is away');
    expect(judge({ device: { status: 'needs reset' } })).toBe('bad: _disk0 needs a reset');
    expect(judge({ queue: quiet })).toBe('idle: idle');
    expect(judge({ queue: quiet, state: 'Paused' })).toBe('still: paused');
    // Also where the guest stands still a back end can be stuck.
    expect(judge({ queue: { state: 'stuck', waiting_ms: 3000 }, state: 'Paused' })).toMatch(/^bad: stuck/);
    expect(judge({ state: 'Created' })).toBe('still: created, not started');
  });

  it('is why it cannot be asked', () => {
    expect(viewUnreachable(NAMED, 'its socket is gone')).toMatchObject({
      severity: 'away',
      headline: 'cannot be asked: its socket is gone',
      state: 'gone',
    });
  });
});

describe('The vCPUs of a machine', () => {
  const view = (now: What, before: What) => viewMachine(NAMED, round(now), round(before), false).vcpus[0];

  it('are as busy as their threads were between two rounds', () => {
    expect(view({ atMs: 2000, cpuMs: 900, exits: 700 }, { atMs: 1000, cpuMs: 400, exits: 200 })).toEqual({
      index: 0,
      load: 0.5,
      exits: [{ reason: 'io', rate: 500 }],
    });
    // Clocks of another resolution, and a thread that is another since a reset.
    expect(view({ atMs: 2000, cpuMs: 1410 }, { atMs: 1000, cpuMs: 400 })?.load).toBe(1);
    expect(view({ atMs: 2000, cpuMs: 10 }, { atMs: 1000, cpuMs: 400 })?.load).toBeNull();
  });

  it('are known by number before they are known by load', () => {
    const first = viewMachine(NAMED, round({ cpuMs: 900 }), undefined, false);
    expect(first.vcpus).toEqual([{ index: 0, load: null, exits: [] }]);
  });
});

describe('What can be done with a machine', () => {
  const actions = (state: string, control: boolean) => viewMachine(NAMED, round({ state }), undefined, control).actions;

  it('depends on its state, and is nothing without control', () => {
    expect(actions('Running', true)).toEqual(['pause', 'power-button', 'reboot', 'shutdown']);
    expect(actions('Paused', true)).toEqual(['resume', 'power-button', 'reboot', 'shutdown']);
    expect(actions('Shutdown', true)).toEqual(['boot']);
    for (const state of ['strange', 'constructor', '__proto__']) {
      expect(actions(state, true)).toEqual([]);
      expect(judge({ state })).toMatch(/^busy: busy: _disk0/);
    }
    expect(actions('Running', false)).toEqual([]);
  });
});

describe('Answers of a VMM', () => {
  it('are taken for what they can be, whatever they are', () => {
    const strange = [undefined, null, 0, 'x', [], [[]], { devices: 7, vcpus: {}, state: {}, config: [] }];
    for (const answer of strange) {
      expect(readQueues(answer)).toMatchObject({ devices: [], vcpus: [] });
      expect(readInfo(answer)).toMatchObject({ memoryBytes: 0, vcpus: 0, serialMode: 'Off' });
      expect(readProgress(answer)).toBeNull();
      expect([...readExits(answer)]).toEqual([]);
    }
    const [device] = readQueues({
      devices: [
        { id: 'x'.repeat(1000), queues: [{ state: 'exploded', rate: -1, size: 'many', latency_us: Number.NaN }] },
      ],
    }).devices;
    expect(device?.id).toHaveLength(256);
    const many = (length: number): object[] => Array.from({ length }, () => ({}));
    const { devices, vcpus } = readQueues({ devices: [{ queues: many(5000) }, ...many(5000)], vcpus: many(5000) });
    expect([devices.length, devices[0]?.queues.length, vcpus.length]).toEqual([64, 256, 1024]);
    for (const boot_vcpus of [5000, 1e9, 1e300, 1.5]) {
      expect(readInfo({ config: { cpus: { boot_vcpus } } }).vcpus).toBe(boot_vcpus === 1.5 ? 1 : 1024);
    }
    expect(device?.queues[0]).toMatchObject({ state: 'unknown', rate: 0, size: 0, exact: false });
  });

  it('tell of an operation while it is under way', () => {
    const progress = { operation: 'send-migration', phase: 'memory', bytes_done: 5, bytes_total: 10 };
    expect(readProgress(progress)).toEqual({
      operation: 'send-migration',
      phase: 'memory',
      bytesDone: 5,
      bytesTotal: 10,
    });
    for (const phase of ['completed', 'failed', 'cancelled']) expect(readProgress({ ...progress, phase })).toBeNull();
  });
});
