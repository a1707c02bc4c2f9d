/** The virtual machine that a VMM has at the moment, or has not: its configuration, its state, and the machine where one runs. */

import type { DeviceNode, VmInfo, VmState } from '../api/vmm-control.ts';
import type { CheckedConfig } from './check-config.ts';
import { VmStateError } from './errors.ts';
import { VIRTIO_MMIO_BYTES } from './layout.ts';
import type { Machine } from './machine.ts';
import { dropDevices } from './slots/plan.ts';
import type { MachineDevice } from './virtio-slots.ts';

export class CurrentVm {
  config: CheckedConfig | undefined;
  /** From boot to shutdown. */
  machine: Machine | undefined;
  /** Says nothing where there is no configuration. */
  state: VmState = 'Created';

  /** For vm.info. @throws VmStateError */
  describe(): VmInfo {
    const config = this.needCreated('be described');
    const { size, hotplugged_size } = config.memory;
    const machine = this.machine;
    if (machine === undefined) return { config, state: this.state, memory_actual_size: size + hotplugged_size };
    return {
      config,
      state: this.state,
      memory_actual_size: machine.memoryBytes,
      device_tree: describeDeviceTree(machine.devices()),
    };
  }

  /** @throws VmStateError - there is a configuration; `verb` is what there cannot be therefore */
  needNothing(verb: string): void {
    if (this.config === undefined) return;
    throw new VmStateError(
      'VM_STATE',
      verb === 'created' ? 'the VM has been created already' : `no VM can be ${verb}: there is one already`,
    );
  }

  /** The configuration as it is now, without the devices that the guest has let go of. @throws VmStateError */
  needCreated(what: string): CheckedConfig {
    if (this.config === undefined) {
      throw new VmStateError('VM_NOT_CREATED', `the VM cannot ${what}: it has not been created`);
    }
    if (this.machine !== undefined) {
      const there = new Set(this.machine.devices().map(({ id }) => id));
      this.config = dropDevices(this.config, (id) => !there.has(id));
    }
    return this.config;
  }

  /** The machine, running or paused. @throws VmStateError */
  needRunning(what: string): Machine {
    this.needCreated(what);
    if (this.machine !== undefined) return this.machine;
    throw new VmStateError('VM_STATE', `the VM cannot ${what}: it does not run`);
  }

  /** @throws VmStateError */
  needPaused(what: string): Machine {
    const machine = this.needRunning(what);
    if (this.state !== 'Paused') throw new VmStateError('VM_STATE', 'the VM is not paused');
    return machine;
  }

  /** A machine that was not booted here. */
  takeOver(machine: Machine, config: CheckedConfig, state: VmState): void {
    this.machine = machine;
    this.config = config;
    this.state = state;
  }

  /** Ends the machine, if there is one, and keeps its configuration. Idempotent. */
  async closeMachine(state: VmState): Promise<void> {
    const machine = this.machine;
    if (machine !== undefined && this.config !== undefined) {
      // A guest that ends will not let go of anything any more.
      const staying = machine.devices().filter((device) => device.state !== 'removal requested');
      const ids = new Set(staying.map(({ id }) => id));
      this.config = dropDevices(this.config, (id) => !ids.has(id));
    }
    this.machine = undefined;
    this.state = state;
    await machine?.close();
  }
}

/** The devices of a machine as vm.info shows them. */
function describeDeviceTree(devices: readonly MachineDevice[]): Record<string, DeviceNode> {
  const nodes = devices.map(({ id, kind, slot, address, interrupt, state }): [string, DeviceNode] => {
    const resources = [{ MmioAddressRange: { base: address, size: VIRTIO_MMIO_BYTES } }, { LegacyIrq: interrupt }];
    return [id, { id, resources, parent: null, children: [], pci_bdf: null, kind, slot, address, interrupt, state }];
  });
  return Object.fromEntries(nodes);
}
