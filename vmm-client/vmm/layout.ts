/**
 * The guest's physical address space and its interrupts: who has which address. RAM ends below the hole and goes on above
 * 4 GiB, as on PCs; devices are in the hole.
 *
 *     0x0000_0000  RAM: boot structures below 640 KiB, the kernel from 1 MiB
 *     0xc000_0000  the hole: 1 GiB
 *     0xd000_0000      virtio-mmio, one page of registers a slot
 *     0xd010_0000      hotplug, one page of registers
 *     0xfec0_0000      I/O APIC      0xfee0_0000  local APICs      0xfffb_c000  KVM's own pages (TSS, identity map)
 *     0x1_0000_0000 RAM goes on
 */

export const PAGE_BYTES = 4096;

/** Below 1 MiB: what the boot protocols need. Addresses are guest physical. */
export const GDT_ADDRESS = 0x500;
export const PVH_START_INFO_ADDRESS = 0x6000;
export const PVH_MODULES_ADDRESS = 0x6100;
export const PVH_MEMORY_MAP_ADDRESS = 0x6200;
export const ZERO_PAGE_ADDRESS = 0x7000;
export const BOOT_STACK_ADDRESS = 0x8ff0;
export const PAGE_TABLES_ADDRESS = 0x9000;
export const CMDLINE_ADDRESS = 0x20000;
/** Bytes, terminating zero included. */
export const CMDLINE_MAX_BYTES = 0x1_0000;
/** End of low RAM as the memory map has it: the extended BIOS data area is above. */
export const EBDA_ADDRESS = 0x9_fc00;
/** RSDP and the tables it leads to, and the 16 bytes where a PC starts after a reset. */
export const ACPI_ADDRESS = 0xe_0000;
export const RESET_VECTOR_ADDRESS = 0xf_fff0;
export const ACPI_END = 0x10_0000;
export const HIGH_RAM_ADDRESS = 0x10_0000;

export const HOLE_START = 0xc000_0000;
export const HOLE_END = 0x1_0000_0000;
export const VIRTIO_MMIO_ADDRESS = 0xd000_0000;
export const VIRTIO_MMIO_BYTES = 0x1000;
export const HOTPLUG_ADDRESS = 0xd010_0000;
export const IO_APIC_ADDRESS = 0xfec0_0000;
export const LOCAL_APIC_ADDRESS = 0xfee0_0000;
export const IDENTITY_MAP_ADDRESS = 0xfffb_c000;
export const TSS_ADDRESS = 0xfffb_d000;

/** Ports. */
export const SERIAL_PORT = 0x3f8;
export const SERIAL_PORT_COUNT = 8;
export const I8042_PORT = 0x60;
export const I8042_PORT_COUNT = 5;
/** ACPI: reset register, then sleep control and sleep status register, one byte each (hardware-reduced ACPI). */
export const ACPI_POWER_PORT = 0x600;
export const ACPI_POWER_PORT_COUNT = 3;

/** Global system interrupts: pins of the I/O APIC, edge triggered, active high. */
export const HOTPLUG_GSI = 3;
export const SERIAL_GSI = 4;
export const FIRST_VIRTIO_GSI = 5;
export const GSI_COUNT = 24;
/** Slots for virtio devices, all of them always there; the last ones are those of devices that the VMM serves itself. */
export const MAX_VIRTIO_DEVICES = GSI_COUNT - FIRST_VIRTIO_GSI;
export const IOMMU_SLOT = MAX_VIRTIO_DEVICES - 1;
export const MEM_SLOT = MAX_VIRTIO_DEVICES - 2;
export const MAX_VCPUS = 254;

/** Guest physical address of a slot's registers. */
export function slotAddress(index: number): number {
  return VIRTIO_MMIO_ADDRESS + index * VIRTIO_MMIO_BYTES;
}
