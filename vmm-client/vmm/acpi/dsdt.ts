/**
 * The machine's devices as ACPI describes them: the slots of virtio-mmio devices, the serial port as PNP0501, a power
 * button (PNP0C0C), and the sleep type of S5 (soft off).
 *
 * Each slot is a container (ACPI0004) that is there while a device is in it, with that device in it: LNRO0005, its page of
 * registers and its interrupt. A node without an id is between the two: Linux never forgets a platform device, and one right
 * inside of a container would be unusable when the container has gone and come again. What becomes of slots a Generic Event Device (ACPI0013) tells: its interrupt makes the guest
 * call _EVT, which acknowledges what is new in the hotplug registers and notifies the containers, or the button.
 * Source: ACPI 6.5, 4.8.2.2.1.2 Control Method Power Button, 6.1 Device Identification Objects, 6.3 Device Insertion, Removal, and Status Objects, 5.6.9
 * Interrupt-signaled ACPI events, 7.4.2.6 \_S5; Linux, drivers/virtio/virtio_mmio.c (LNRO0005), drivers/acpi/container.c and
 * drivers/tty/serial/8250/8250_pnp.c.
 */

import { HOTPLUG_REGISTERS_BYTES, POWER_BUTTON } from '../hotplug/register-offsets.ts';
import {
  FIRST_VIRTIO_GSI,
  HOTPLUG_ADDRESS,
  HOTPLUG_GSI,
  MAX_VIRTIO_DEVICES,
  SERIAL_GSI,
  SERIAL_PORT,
  SERIAL_PORT_COUNT,
  VIRTIO_MMIO_ADDRESS,
  VIRTIO_MMIO_BYTES,
} from '../layout.ts';
import {
  concat,
  device,
  edgeInterrupt,
  integer,
  ioPorts,
  memory32Fixed,
  name,
  packageOf,
  resourceTemplate,
  scope,
  string,
} from './aml.ts';
import { ifAnySet, LOCAL0, memoryRegion, method, named, notify, returnValue, store, wordFields } from './aml-code.ts';

export interface DsdtOptions {
  readonly hasSerial: boolean;
}

/** What a guest writes as SLP_TYP to the sleep control register to switch the machine off. */
export const S5_SLEEP_TYPE = 5;

/** Device present, enabled, shown and working: 6.3.7 _STA. */
const STATUS_PRESENT = 0x0f;
/** 5.6.6 Device Object Notifications. */
const NOTIFY_DEVICE_CHECK = 1;
const NOTIFY_EJECT_REQUEST = 3;
const NOTIFY_BUTTON_PRESSED = 0x80;

const SLOTS = Array.from({ length: MAX_VIRTIO_DEVICES }, (_, slot) => slot);

const slotName = (letter: string, slot: number): string =>
  `${letter}${slot.toString(16).toUpperCase().padStart(3, '0')}`;

/** The registers of hotplug as fields: hotplug/register-offsets.ts, from the first to the last. */
const hotplugFields = (): readonly Uint8Array[] => [
  memoryRegion('HPRG', HOTPLUG_ADDRESS, HOTPLUG_REGISTERS_BYTES),
  wordFields('HPRG', 'PRES', 'ADDE', 'REMV', 'ACKA', 'ACKR', 'EJCT', 'BTNS', 'ACKB'),
];

/** What all slots have alike is encoded once: a guest waits for its tables. */
const VIRTIO_MMIO_ID = name('_HID', string('LNRO0005'));
const COHERENT = name('_CCA', integer(1));
const CONTAINER_ID = name('_HID', string('ACPI0004'));
const NO_ID = name('_ADR', integer(0));
const PRESENT = named('PRES');
const IS_PRESENT = returnValue(integer(STATUS_PRESENT));
const IS_ABSENT = returnValue(integer(0));
const EJECT = named('EJCT');

const virtioDevice = (slot: number): Uint8Array =>
  device(
    slotName('V', slot),
    VIRTIO_MMIO_ID,
    name('_UID', integer(slot)),
    COHERENT,
    name(
      '_CRS',
      resourceTemplate(
        memory32Fixed(VIRTIO_MMIO_ADDRESS + slot * VIRTIO_MMIO_BYTES, VIRTIO_MMIO_BYTES),
        edgeInterrupt(FIRST_VIRTIO_GSI + slot),
      ),
    ),
  );

const slotContainer = (slot: number): Uint8Array =>
  device(
    slotName('S', slot),
    CONTAINER_ID,
    name('_UID', integer(slot)),
    method('_STA', 0, false, ifAnySet(PRESENT, 1 << slot, IS_PRESENT), IS_ABSENT),
    method('_EJ0', 1, false, store(integer(slot), EJECT)),
    device(slotName('B', slot), NO_ID, virtioDevice(slot)),
  );

/** Reads a bitmap, acknowledges what it has, and notifies the slots of its bits. */
const notifySlots = (bitmap: string, acknowledge: string, notification: number): readonly Uint8Array[] => [
  store(named(bitmap), LOCAL0),
  store(LOCAL0, named(acknowledge)),
  ...SLOTS.map((slot) => ifAnySet(LOCAL0, 1 << slot, notify(slotName('S', slot), notification))),
];

const eventDevice = (): Uint8Array =>
  device(
    'GED',
    name('_HID', string('ACPI0013')),
    name('_UID', integer(0)),
    name('_CRS', resourceTemplate(edgeInterrupt(HOTPLUG_GSI))),
    method(
      '_EVT',
      1,
      true,
      ...notifySlots('ADDE', 'ACKA', NOTIFY_DEVICE_CHECK),
      ...notifySlots('REMV', 'ACKR', NOTIFY_EJECT_REQUEST),
      store(named('BTNS'), LOCAL0),
      store(LOCAL0, named('ACKB')),
      ifAnySet(LOCAL0, POWER_BUTTON, notify('PWRB', NOTIFY_BUTTON_PRESSED)),
    ),
  );

const powerButton = (): Uint8Array => device('PWRB', name('_HID', string('PNP0C0C')));

const serialPort = (): Uint8Array =>
  device(
    'COM1',
    name('_HID', string('PNP0501')),
    name('_UID', integer(0)),
    name('_CRS', resourceTemplate(ioPorts(SERIAL_PORT, SERIAL_PORT_COUNT), edgeInterrupt(SERIAL_GSI))),
  );

/** The terms of the DSDT, without the table's header. */
export const encodeDsdtBody = ({ hasSerial }: DsdtOptions): Uint8Array =>
  concat(
    scope(
      '\\_SB',
      ...hotplugFields(),
      ...SLOTS.map(slotContainer),
      powerButton(),
      eventDevice(),
      ...(hasSerial ? [serialPort()] : []),
    ),
    name('\\_S5', packageOf(integer(S5_SLEEP_TYPE), integer(0), integer(0), integer(0))),
  );
