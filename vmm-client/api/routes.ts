/** Every route of the API: what it is called, what it asks of the machine, what it takes and answers. */

import type { VmmControl } from './vmm-control.ts';

/** One route: its name in the path, what it calls. */
export interface Route {
  readonly name: string;
  readonly method: 'GET' | 'PUT';
  readonly operation: keyof VmmControl;
  readonly summary: string;
  /** Component schemas. */
  readonly body?: string;
  /** Without it the answer is 204. */
  readonly answer?: string;
  /** What the answer is where it is no JSON but bytes without an end. */
  readonly stream?: string;
  /** When the answer is 204 although there is an `answer`. */
  readonly silence?: string;
  /** What states other than the one that is needed answer: 404 nothing is created, 405 another state; 409 it is there already. */
  readonly refusals: readonly (404 | 405 | 409)[];
}

/** A device that is added to a machine that runs is there at once, and otherwise from vm.boot on. */
const addition = (name: string, operation: keyof VmmControl, what: string, body: string): Route => ({
  name,
  method: 'PUT',
  operation,
  summary: `Adds ${what}`,
  body,
  answer: 'AddedDevice',
  silence: 'The machine does not run: the device is in its configuration.',
  refusals: [404, 405, 409],
});

export const ROUTES: readonly Route[] = [
  { name: 'vmm.ping', method: 'GET', operation: 'ping', summary: 'Says who answers', answer: 'VmmPing', refusals: [] },
  { name: 'vmm.shutdown', method: 'PUT', operation: 'shutdownVmm', summary: 'Ends the VMM', refusals: [] },
  {
    name: 'vm.create',
    method: 'PUT',
    operation: 'create',
    summary: 'Takes a configuration; nothing runs yet',
    body: 'VmConfig',
    refusals: [405],
  },
  { name: 'vm.boot', method: 'PUT', operation: 'boot', summary: 'Starts what was created', refusals: [404, 405] },
  {
    name: 'vm.info',
    method: 'GET',
    operation: 'info',
    summary: 'Returns configuration and state',
    answer: 'VmInfo',
    refusals: [404],
  },
  {
    name: 'vm.counters',
    method: 'GET',
    operation: 'counters',
    summary: 'Returns counters, by device',
    answer: 'VmCounters',
    refusals: [404, 405],
  },
  {
    name: 'vm.queues',
    method: 'GET',
    operation: 'queues',
    summary: 'Returns how queues and vCPUs do; the first answer takes a quarter of a second',
    answer: 'VmQueues',
    refusals: [404, 405],
  },
  {
    name: 'vm.console',
    method: 'GET',
    operation: 'console',
    summary: 'Streams the last 64 KiB that the guest sent by its serial port, and what it sends from then on',
    stream: 'Bytes, until the machine ends, or the reader is 64 KiB behind.',
    refusals: [404, 405],
  },
  {
    name: 'vm.console-input',
    method: 'PUT',
    operation: 'consoleInput',
    summary: 'Types at the serial port',
    body: 'VmConsoleInput',
    refusals: [404, 405],
  },
  { name: 'vm.pause', method: 'PUT', operation: 'pause', summary: 'Stops the vCPUs', refusals: [404, 405] },
  { name: 'vm.resume', method: 'PUT', operation: 'resume', summary: 'Lets the vCPUs go on', refusals: [404, 405] },
  { name: 'vm.shutdown', method: 'PUT', operation: 'shutdown', summary: 'Stops the machine', refusals: [404, 405] },
  {
    name: 'vm.power-button',
    method: 'PUT',
    operation: 'pressPowerButton',
    summary: 'Asks the guest to shut down',
    refusals: [404, 405],
  },
  { name: 'vm.reboot', method: 'PUT', operation: 'reboot', summary: 'Starts the machine anew', refusals: [404, 405] },
  { name: 'vm.delete', method: 'PUT', operation: 'delete', summary: 'Forgets the configuration', refusals: [] },
  addition('vm.add-disk', 'addDisk', 'a disk', 'DiskConfig'),
  addition('vm.add-net', 'addNet', 'a network interface', 'NetConfig'),
  addition('vm.add-fs', 'addFs', 'a shared file system', 'FsConfig'),
  addition('vm.add-vsock', 'addVsock', 'virtual sockets', 'VsockConfig'),
  {
    name: 'vm.remove-device',
    method: 'PUT',
    operation: 'removeDevice',
    summary: 'Asks the guest to let go of a device',
    body: 'VmRemoveDevice',
    refusals: [404, 405],
  },
  {
    name: 'vm.resize',
    method: 'PUT',
    operation: 'resize',
    summary: 'Gives the guest more or less memory',
    body: 'VmResize',
    refusals: [404, 405],
  },
  {
    name: 'vm.resize-disk',
    method: 'PUT',
    operation: 'resizeDisk',
    summary: 'Gives the image of a disk another size',
    body: 'VmResizeDisk',
    refusals: [404, 405],
  },
  {
    name: 'vm.snapshot',
    method: 'PUT',
    operation: 'snapshot',
    summary: 'Saves a paused machine in a directory',
    body: 'VmSnapshotConfig',
    refusals: [404, 405],
  },
  {
    name: 'vm.restore',
    method: 'PUT',
    operation: 'restore',
    summary: 'Makes a machine of a snapshot',
    body: 'RestoreConfig',
    refusals: [404, 405],
  },
  {
    name: 'vm.send-migration',
    method: 'PUT',
    operation: 'sendMigration',
    summary: 'Moves the machine to another VMM',
    body: 'SendMigrationData',
    refusals: [404, 405],
  },
  {
    name: 'vm.receive-migration',
    method: 'PUT',
    operation: 'receiveMigration',
    summary: 'Waits for a machine and takes it over',
    body: 'ReceiveMigrationData',
    refusals: [404, 405],
  },
  {
    name: 'vm.cancel-migration',
    method: 'PUT',
    operation: 'cancelMigration',
    summary: 'Ends a migration that is under way',
    refusals: [405],
  },
  {
    name: 'vm.progress',
    method: 'GET',
    operation: 'progress',
    summary: 'Returns how far the long operation under way has come, or how the last one ended',
    answer: 'VmProgress',
    refusals: [404],
  },
];
