/**
 * The registers of hotplug: words of 32 bits in a page of their own. Bit N of a bitmap is slot N. The power button is
 * among them, as it is told of by the same interrupt. The methods by which a guest uses them are in acpi/dsdt.ts.
 */

/** A device is in the slot. */
export const PRESENT = 0x00;
/** One has come into the slot, and the guest has not acknowledged it. */
export const ADDED = 0x04;
/** The device of the slot is wanted back, and the guest has not acknowledged that. */
export const REMOVING = 0x08;
/** Write: clears these bits of ADDED. */
export const ACKNOWLEDGE_ADDED = 0x0c;
/** Write: clears these bits of REMOVING. */
export const ACKNOWLEDGE_REMOVING = 0x10;
/** Write: the number of a slot whose device is to go. It is gone when the write is done. */
export const EJECT = 0x14;
/** Bit 0: the power button was pressed, and the guest has not acknowledged it. */
export const BUTTONS = 0x18;
/** Write: clears these bits of BUTTONS. */
export const ACKNOWLEDGE_BUTTONS = 0x1c;
export const HOTPLUG_REGISTERS_BYTES = 0x20;

export const POWER_BUTTON = 1;
