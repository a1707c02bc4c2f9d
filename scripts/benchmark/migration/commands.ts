/** What is run, for the report: command lines of monitors, and what they are asked. */

import type { GuestOptions } from './moves.ts';
import { configOf, serveLine } from './ours.ts';
import { qemuLine } from './qemu.ts';
import type { MigrationWorkload, Monitor } from './workloads.ts';

function join(line: readonly string[]): string {
  return line.map((word) => (word === process.execPath ? 'node' : word.includes(' ') ? `"${word}"` : word)).join(' ');
}

/** Of ours what is asked over the API, of the other one its command line and what it is told by QMP. */
export function commandsOf(workload: MigrationWorkload, monitor: Monitor): string[] {
  const { load, kind } = workload;
  const options: GuestOptions = {
    ...{ kernel: 'GUEST', image: 'IMAGE', load },
    data: load.dataMib === 0 ? undefined : `DATA-${load.dataMib}`,
  };
  const downtime = 'downtimeMs' in workload ? workload.downtimeMs : 1;
  if (monitor === 'qemu') {
    const told =
      kind === 'snapshot'
        ? ['QMP: stop; migrate file:FILE', 'QMP: migrate-incoming file:FILE; cont']
        : [`QMP: migrate-set-parameters max-bandwidth=1e12 downtime-limit=${downtime}; migrate URL`];
    return [join(qemuLine(options, 'QMP')), ...told];
  }
  const asked =
    kind === 'snapshot'
      ? [
          'vm.pause; vm.snapshot {"destination_url":"file://FOLDER"}',
          'vm.restore {"source_url":"file://FOLDER","resume":true}',
        ]
      : [
          'vm.receive-migration {"receiver_url":"URL"}',
          `vm.send-migration {"destination_url":"URL","downtime_ms":${downtime}}`,
        ];
  return [join(serveLine('API')), `vm.create ${JSON.stringify(configOf(options))}`, ...asked];
}
