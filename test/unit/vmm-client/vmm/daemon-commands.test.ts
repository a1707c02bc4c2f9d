import { describe, expect, it } from 'vitest';
import { parseBlkOptions } from '../../../../backends/blk/options.ts';
import { parseNetOptions } from '../../../../backends/net/options.ts';
import { diskDaemon, netDaemon } from '../../../../vmm-client/vmm/daemon-commands.ts';

/** As the daemons themselves understand it. */
const asBlk = (args: readonly string[]) => parseBlkOptions(['--fd=3', ...args], '0');
const asNet = (args: readonly string[]) => parseNetOptions(['--fd=3', ...args], '0');

describe('the daemon of a disk', () => {
  it('is told the file and the queues, and nothing that was not said', () => {
    const { name, program, args } = diskDaemon({ id: '_disk0', path: '/a b/disk.img' });
    expect([name, program]).toEqual(['_disk0', 'vhost-user-blk']);
    expect(asBlk(args)).toMatchObject({ blkFile: '/a b/disk.img', numQueues: 1, readOnly: false, direct: false });
    expect(asBlk(args).serial).toBe('disk.img');
  });

  it('is told all that can be said', () => {
    const disk = { id: 'd', path: 'x', readonly: true, direct: true, serial: 's', num_queues: 4, iommu: true };
    expect(asBlk(diskDaemon(disk).args)).toMatchObject({
      readOnly: true,
      direct: true,
      serial: 's',
      numQueues: 4,
      iommu: true,
    });
  });

  it('gets a file whose name looks like an option as a file', () => {
    expect(asBlk(diskDaemon({ id: 'd', path: '--read-only' }).args)).toMatchObject({
      blkFile: '--read-only',
      readOnly: false,
    });
  });
});

describe('the daemon of a network', () => {
  it('is told the interface and one pair of queues', () => {
    const { program, args } = netDaemon({ id: '_net0', tap: 'vm1' });
    expect(program).toBe('vhost-user-net');
    expect(asNet(args)).toMatchObject({ tap: 'vm1', numQueuePairs: 1, ctrlVq: true });
    expect(asNet(args)).not.toHaveProperty('mac');
  });

  it('is told all that can be said; rings are pairs', () => {
    const net = { id: 'n', tap: 'vm1', mac: '52:54:00:12:34:56', mtu: 9000, num_queues: 8, iommu: true };
    const options = asNet(netDaemon(net).args);
    expect(options).toMatchObject({ mtu: 9000, numQueuePairs: 4, iommu: true });
    expect(Buffer.from(options.mac ?? []).toString('hex')).toBe('525400123456');
  });
});
