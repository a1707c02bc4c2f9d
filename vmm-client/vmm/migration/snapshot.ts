/**
 * A paused machine goes to a directory, and comes from it again: RAM, processors, devices. What is on disks is not in it:
 * whoever wants both back copies the images while the machine is paused.
 */

import type { CheckedConfig } from '../check-config.ts';
import { VmError } from '../errors.ts';
import type { LongOperation } from '../long-operation.ts';
import type { Machine, MachineEnvironment } from '../machine.ts';
import { parseConfig } from '../parse-config.ts';
import { decodeState, encodeState, fieldsOf } from '../state/codec.ts';
import { checkRanges, parseLayout, plainLayout } from './offer.ts';
import type { PageRange } from './page-set.ts';
import { type OnPiece, readMemory, readTexts, SnapshotWriter } from './snapshot-files.ts';

const VERSION = 1;

/** Notes progress with each piece of memory, and ends the operation when it is to end. */
function progressOf(operation: LongOperation, ranges: readonly PageRange[]): OnPiece {
  const start = performance.now();
  let bytes_done = 0;
  operation.report({ phase: 'memory', round: 1, bytes_total: ranges.reduce((sum, { length }) => sum + length, 0) });
  return (bytes) => {
    bytes_done += bytes;
    const bytes_per_second = Math.round((bytes_done / (performance.now() - start)) * 1000);
    operation.report({ bytes_done, bytes_per_second });
    operation.signal.throwIfAborted();
  };
}

/**
 * Saves a machine whose vCPUs are held. Its devices stand still meanwhile and go on afterwards, in any case.
 * @throws VmConfigError - the directory has a snapshot already, or cannot be had
 * @throws VmError - a device or the file system refuses; nothing of the snapshot is left
 */
export async function saveSnapshot(
  machine: Machine,
  config: CheckedConfig,
  directory: string,
  operation: LongOperation,
): Promise<void> {
  const writer = await SnapshotWriter.create(directory);
  try {
    operation.report({ phase: 'devices' });
    try {
      await machine.suspend();
      await writer.writeMemory(machine.memory, progressOf(operation, machine.memory.ranges));
      const state = { version: VERSION, layout: plainLayout(machine.layout), machine: await machine.state() };
      await writer.writeTexts({
        config: Buffer.from(`${JSON.stringify(config, null, 2)}\n`),
        state: encodeState(state),
      });
    } finally {
      await machine.goOn();
    }
    operation.signal.throwIfAborted();
    await writer.commit();
  } catch (error) {
    await writer.discard();
    throw error;
  }
}

/**
 * Builds the machine of a snapshot; its vCPUs are held. `adjust` says what is to be different here.
 * @throws VmConfigError - there is no snapshot, or not one that can run here
 * @throws VmError - it is damaged, or a back end refuses; nothing is left of the machine
 */
export async function restoreSnapshot(
  directory: string,
  adjust: (config: CheckedConfig) => CheckedConfig,
  environment: MachineEnvironment,
  onEnd: () => void,
  operation: LongOperation,
): Promise<{ readonly machine: Machine; readonly config: CheckedConfig }> {
  const { Machine } = await import('../machine.ts');
  const texts = await readTexts(directory);
  const config = adjust(parseConfig(parseJson(texts.config)));
  const { version, layout, machine: state } = fieldsOf(decodeState(texts.state), 'state.json');
  if (version !== VERSION)
    throw new VmError(`state.json has version ${String(version)}, this program takes ${VERSION}`);
  const laidOut = parseLayout(layout);
  operation.report({ phase: 'connecting' });
  const machine = await Machine.open(config, { layout: laidOut, incoming: false }, environment, onEnd);
  try {
    checkRanges(machine.memory.ranges, laidOut.ranges);
    await readMemory(directory, machine.memory, progressOf(operation, laidOut.ranges));
    operation.report({ phase: 'devices' });
    await machine.restoreProcessors(state);
    await machine.restoreDevices(state);
    operation.signal.throwIfAborted();
    return { machine, config };
  } catch (error) {
    await machine.close();
    throw error;
  }
}

function parseJson(text: Buffer): unknown {
  try {
    return JSON.parse(text.toString());
  } catch (error) {
    throw new VmError(`config.json is not JSON: ${(error as Error).message}`);
  }
}
