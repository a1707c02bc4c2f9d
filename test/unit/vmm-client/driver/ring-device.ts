/** What a test's device does with a ring, whatever the layout. */

export interface Buffer {
  address: number;
  length: number;
  writable: boolean;
}

/** A chain as the device took it. */
export interface Taken {
  /** Head, or buffer ID. */
  id: number;
  /** Descriptors of the ring. */
  slots: number;
  buffers: Buffer[];
}

/** Where the ring is, in offsets into the memory. */
export interface DeviceRing {
  readonly size: number;
  readonly descriptorArea: number;
  readonly driverArea: number;
  readonly deviceArea: number;
}

export interface RingDevice {
  /** What a front end says for SET_VRING_BASE when nothing but what is used was taken. */
  readonly usedBase: number;

  /** Takes the next chain, if it is there, and checks it. */
  take(): Taken | undefined;

  /**
   * Uses chains by one entry, which names the last and has its length. Returns whether the driver wants to be told.
   */
  complete(chains: readonly Taken[], length: number): boolean;

  /** Wants kicks: for everything, for nothing, for the chain that is taken next. */
  askAlways(): void;
  askNever(): void;
  askHere(): void;
}
